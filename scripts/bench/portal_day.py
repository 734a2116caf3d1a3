"""Feeds a tab the frames of a day in a short time. The page itself simulates the manager for the list of workers, so
that frames arrive as fast as they are processed, by the same code as in production (inflate, parse, store, draw)."""

from __future__ import annotations

from playwright.sync_api import Page

AT_ONCE = 500  # seconds of frames for each call into the page

# A replacement of the page's socket that serves the list of workers instead of the manager.
SOCKET = """() => {
  const Real = window.WebSocket;
  window.WebSocket = class extends Real {
    send(text) {
      const asked = JSON.parse(text);
      if (asked.t !== 'sub' || asked.topic !== 'rows:workers') super.send(text);
      else window.fed = { socket: this, seq: asked.seq, second: 0 };
    }
  };
}"""
# Frames for a number of seconds: measurements of all workers in each, and a change of state.
FEED = """async ({ workers, seconds }) => {
  const { fed } = window;
  const numbers = (make) => Array.from({ length: workers }, make);
  const random = (most) => Math.floor(Math.random() * most);
  const slots = [0, ...new Array(workers - 1).fill(1)];
  fed.tails ??= Array.from({ length: 64 }, () => JSON.stringify({
    slots,
    columns: {
      cpu_percent: numbers(() => random(1000) / 10),
      rss_bytes: numbers(() => random(900) * 1e7 + 1e9),
      gpu_percent: numbers(() => random(100)),
    },
  }).slice(1));
  const through = (data, stream) => new Response(new Blob([data]).stream().pipeThrough(stream)).arrayBuffer();
  const tell = (data) => fed.socket.dispatchEvent(new MessageEvent('message', { data }));
  const end = fed.second + seconds;
  for (; fed.second < end; fed.second += 1) {
    const head = `{"t":"measures","topic":"rows:workers","seq":${fed.seq},`;
    const frame = await through(head + fed.tails[random(64)], new CompressionStream('deflate'));
    tell(frame);
    const columns = { state: [fed.second % 2 ? 'backoff' : 'running'], reason: [`restart ${fed.second}`] };
    const change = { slots: [fed.second % workers], gone: [], columns };
    tell(JSON.stringify({ t: 'rows', topic: 'rows:workers', seq: fed.seq + 1, prev: fed.seq, ...change }));
    fed.seq += 1;
    await through(frame, new DecompressionStream('deflate')); // no sooner than the page has it inflated
    if (fed.second % 50 === 0) await new Promise((done) => setTimeout(done));
  }
}"""
SHOWN = "document.querySelector('.workers-table')?.textContent.includes('restart ')"


def prepare(page: Page) -> None:
    """Prepare a page; must be called before it is opened."""
    page.add_init_script(f"({SOCKET})()")


def feed(page: Page, workers: int, seconds: int) -> None:
    for begin in range(0, seconds, AT_ONCE):
        page.evaluate(FEED, {"workers": workers, "seconds": min(AT_ONCE, seconds - begin)})
