/** Builds and updates the page. Data is inserted only as text nodes and attributes, never as markup. */

/** h('a.button', {href: '#/', on: {click}}, 'text', node, …) */
export function h(selector, properties = {}, ...children) {
  const [tag, ...classes] = selector.split('.');
  const node = document.createElement(tag || 'div');
  if (classes.length) node.className = classes.join(' ');
  for (const [name, value] of Object.entries(properties)) setProperty(node, name, value);
  append(node, children);
  return node;
}

function setProperty(node, name, value) {
  if (value === undefined || value === null || value === false) return;
  if (name === 'on') {
    for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
  } else if (name === 'data') {
    Object.assign(node.dataset, value);
  } else if (name === 'value' || name === 'checked' || name === 'disabled' || name === 'selected') {
    node[name] = value;
  } else {
    node.setAttribute(name, value === true ? '' : String(value));
  }
}

export function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

/** Updates an existing text node, and only if the text changed: no node is added or removed, and the user's selection is kept. */
export function setText(node, text) {
  const wanted = text === null || text === undefined ? '' : String(text);
  const only = node.firstChild;
  if (only && only === node.lastChild && only.nodeType === Node.TEXT_NODE && wanted) {
    if (only.data !== wanted) only.data = wanted;
  } else if (node.textContent !== wanted) {
    node.textContent = wanted;
  }
}

export function setAttr(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else {
    const wanted = String(value);
    if (node.getAttribute(name) !== wanted) node.setAttribute(name, wanted);
  }
}

export function setClass(node, wanted) {
  if (node.className !== wanted) node.className = wanted;
}

/**
 * Functions that write a node's only text, or one attribute, if it changed. They remember it instead of reading the document, which
 * would create a string for each read: a list that scrolls writes ten thousand texts a second.
 */
export function textWriter(node) {
  const text = node.appendChild(document.createTextNode(''));
  let written = '';
  return (next) => {
    const wanted = next === null || next === undefined ? '' : String(next);
    if (wanted !== written) text.data = wanted;
    written = wanted;
  };
}

export function attrWriter(node, name) {
  let written = null;
  return (next) => {
    const wanted = next === null || next === undefined || next === false ? null : String(next);
    if (wanted === written) return;
    written = wanted;
    if (wanted === null) node.removeAttribute(name);
    else node.setAttribute(name, wanted);
  };
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

export function fill(node, ...children) {
  node.replaceChildren();
  return append(node, children);
}

/**
 * Makes the children of `parent` one element per item, by key: existing elements are kept and missing ones created, in the order of
 * `items`. `make(item)` returns an element with a function `update(item)`.
 */
export function keyed(parent, items, keyOf, make) {
  const existing = parent.keyedNodes || (parent.keyedNodes = new Map());
  const wanted = new Set(items.map(keyOf));
  for (const [key, node] of existing) {
    if (!wanted.has(key)) {
      node.remove();
      existing.delete(key);
    }
  }
  let after = null;
  for (const item of items) {
    const key = keyOf(item);
    let node = existing.get(key);
    if (!node) {
      node = make(item);
      existing.set(key, node);
    }
    node.update(item);
    const place = after ? after.nextSibling : parent.firstChild;
    if (node !== place) parent.insertBefore(node, place);
    after = node;
  }
}

/** Limits `action` to one call per frame. */
export function framed(action) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      action();
    });
  };
}

/** Limits `action` to one call per `everyMs`, in an animation frame; the first call of a burst is immediate, the last is never lost. */
export function paced(action, everyMs) {
  let last = -Infinity;
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    const run = () =>
      requestAnimationFrame(() => {
        waiting = false;
        last = performance.now();
        action();
      });
    const left = last + everyMs - performance.now();
    if (left > 0) setTimeout(run, left);
    else run();
  };
}

export function debounced(action, delayMs) {
  let timer = null;
  const run = () => {
    clearTimeout(timer);
    timer = setTimeout(action, delayMs);
  };
  run.cancel = () => clearTimeout(timer);
  return run;
}
