"""Pictures of pages that are the same on every machine, and their comparison.

A page is laid out with a font of boxes (boxfont.py). For its picture it is replaced by a copy that nothing changes any
more, in which each number, duration and time is "0" and bars that depend on measurements are empty.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

from playwright.sync_api import BrowserContext, Page

from tests.browser.boxfont import font

# In the page before its own scripts. Neither the font nor the style sheet is subject to the page's security policy.
DRESS = """(() => {
  const face = new FontFace('Boxes', Uint8Array.from(atob('%s'), (one) => one.charCodeAt(0)).buffer);
  document.fonts.add(face);
  face.load();
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`
    *, *::before, *::after {
      font-family: Boxes !important; text-rendering: geometricPrecision !important; font-synthesis: none !important;
      animation: none !important; transition: none !important; caret-color: transparent !important;
    }
    ::-webkit-scrollbar { display: none; }
    select, input[type='checkbox'] { appearance: none !important; }
    input[type='checkbox'] { width: 16px; height: 16px; border: 1px solid; }
  `);
  document.adoptedStyleSheets = [sheet];
})()"""

STILL = r"""async () => {
  await document.fonts.ready;
  const NUMBERS = /\d[\d.,:\/]*( ?([KMGT]i?B|B|s|min|h|d|ms|秒|分钟|分|小时|天)(?![A-Za-z]))?/g;
  const copy = document.body.cloneNode(true);
  const before = [document.body, ...document.body.querySelectorAll('*')];
  const after = [copy, ...copy.querySelectorAll('*')];
  const places = before.map((node, at) => [after[at], node.scrollTop, node.scrollLeft]);
  const walker = document.createTreeWalker(copy, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    const numbers = text.data.replace(NUMBERS, '0').replace(/0( 0)+/g, '0');
    const still = numbers.replace('just now', '0 ago').replace('刚刚', '0前');
    if (still !== text.data) text.data = still;
  }
  for (const level of copy.querySelectorAll('.meter-level, .strip-bar > *')) level.style.visibility = 'hidden';
  document.body.replaceWith(copy);
  for (const [node, top, left] of places) if (top || left) node.scrollTo(left, top);
}"""

# A pixel differs if one of its channels does by more than `step`: edges of boxes are smoothed. The picture of the
# differences shows them in red on a pale copy.
COMPARE = """async ([one, other, step]) => {
  const pixels = await Promise.all([one, other].map(async (data) => {
    const image = new Image();
    image.src = `data:image/png;base64,${data}`;
    await image.decode();
    const canvas = Object.assign(document.createElement('canvas'), { width: image.width, height: image.height });
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const shot = context.getImageData(0, 0, image.width, image.height);
    return { canvas, context, shot, size: `${image.width} x ${image.height} px` };
  }));
  const [expected, actual] = pixels;
  if (expected.size !== actual.size) return { share: 1, where: `${expected.size} -> ${actual.size}`, picture: other };
  const { width } = actual.shot;
  const [was, now] = pixels.map(({ shot }) => shot.data);
  const box = [Infinity, Infinity, -1, -1];
  let count = 0;
  for (let at = 0; at < now.length; at += 4) {
    const differs = [0, 1, 2].some((channel) => Math.abs(now[at + channel] - was[at + channel]) > step);
    if (differs) {
      const x = (at / 4) % width;
      const y = Math.floor(at / 4 / width);
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x);
      box[3] = Math.max(box[3], y);
      count += 1;
    }
    for (const channel of [0, 1, 2]) now[at + channel] = differs ? [220, 0, 0][channel] : 191 + now[at + channel] / 4;
  }
  actual.context.putImageData(actual.shot, 0, 0);
  const where = `from ${box[0]},${box[1]} to ${box[2]},${box[3]}`;
  return { share: count / (now.length / 4), where, picture: actual.canvas.toDataURL('image/png').split(',')[1] };
}"""
STEP = 6  # of 255: the soft colours of two states are 10 apart


class Difference(NamedTuple):
    """`share` of the pixels that differ, from 0 to 1; `where`: the box around them; `picture`: a PNG of them."""

    share: float
    where: str
    picture: bytes


def dress(context: BrowserContext) -> None:
    """Lay out all pages of `context` in boxes."""
    context.add_init_script(DRESS % base64.b64encode(font()).decode())


def hold_still(page: Page) -> None:
    """Replace the page by its copy. It can only be looked at afterwards."""
    page.evaluate(STILL)


def difference(page: Page, expected: bytes, actual: bytes) -> Difference:
    """Compare two PNG on a canvas of `page`, any page without a security policy."""
    found = page.evaluate(COMPARE, [base64.b64encode(one).decode() for one in (expected, actual)] + [STEP])
    return Difference(found["share"], found["where"], base64.b64decode(found["picture"]))
