/**
 * The reader's position on each page of this tab's history, restored by Back and Forward. Owns the marks of history entries, the
 * scroll positions and the focus; a page provides further state itself (`page.keep()`).
 */

const MAX_VISITS = 50;
const GIVE_UP_MS = 5000; // a page that is still shorter by then has changed
const EVERY_MS = 50;

export class Visits {
  constructor() {
    this.known = new Map(); // mark of a history entry -> {scrolled, focus, page}
    this.current = this.mark();
    this.waiting = null;
    for (const kind of ['wheel', 'pointerdown', 'keydown', 'touchstart']) {
      document.addEventListener(kind, () => this.stop(), { capture: true, passive: true });
    }
  }

  mark() {
    if (history.state && history.state.visit) return history.state.visit;
    const visit = crypto.getRandomValues(new Uint32Array(2)).join('-');
    history.replaceState({ visit }, '');
    return visit;
  }

  /** The address has changed: stores the state of `page`; returns the stored state of the current entry, or null. */
  turn(page) {
    this.stop();
    const isNew = !(history.state && history.state.visit);
    const now = this.mark();
    if (now === this.current) return null;
    if (page) this.note(this.current, page);
    this.current = now;
    return isNew ? null : this.known.get(now) || null;
  }

  note(visit, page) {
    const boxes = [page.node.closest('main'), ...page.node.querySelectorAll('*')].filter((box) => box && box.scrollTop > 0 && !box.matches('.log-scroll'));
    this.known.delete(visit);
    this.known.set(visit, { scrolled: boxes.map((box) => [pathTo(box), box.scrollTop]), focus: nameOf(document.activeElement, page.node), page: page.keep ? page.keep() : null });
    if (this.known.size > MAX_VISITS) this.known.delete(this.known.keys().next().value);
  }

  /** Restores the position as soon as the page is long enough, unless the reader scrolls first. */
  restore({ scrolled, focus }) {
    const until = performance.now() + GIVE_UP_MS;
    let boxes = scrolled;
    let focusOn = focus;
    const step = () => {
      boxes = boxes.filter(([path, top]) => {
        const box = document.querySelector(path);
        if (box) box.scrollTop = top;
        return !box || box.scrollTop < top - 1;
      });
      const target = focusOn && boxes.length === 0 && found(focusOn);
      if (target) {
        target.focus({ preventScroll: true });
        focusOn = null;
      }
      const done = boxes.length === 0 && !focusOn;
      this.waiting = done || performance.now() > until ? null : setTimeout(step, EVERY_MS);
    };
    step();
  }

  stop() {
    clearTimeout(this.waiting);
    this.waiting = null;
  }
}

function pathTo(box) {
  const parts = [];
  for (let node = box; node && node.id !== 'content'; node = node.parentElement) {
    parts.unshift(`:nth-child(${[...node.parentElement.children].indexOf(node) + 1})`);
  }
  return ['#content', ...parts].join(' > ');
}

/** Identifies the focused element: a link by its target, a row by its item, anything else by its position. */
function nameOf(node, page) {
  if (!node || !page.contains(node) || node.matches('h1')) return null;
  const row = node.closest('[data-key]');
  const href = node.getAttribute('href');
  return { href, key: row && row.dataset.key, path: href || row ? null : pathTo(node) };
}

function found({ href, key, path }) {
  if (path) return document.querySelector(path);
  const within = key ? document.querySelector(`#content [data-key="${CSS.escape(key)}"]`) : document.getElementById('content');
  if (!within) return null;
  return href ? within.querySelector(`a[href="${CSS.escape(href)}"]`) : within;
}
