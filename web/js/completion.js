/**
 * Suggestions under a text field: arrow keys select, Enter or Tab accepts, Escape closes. The owner provides the
 * suggestions.
 */

import { h, setAttr, show } from './dom.js';

const SHOWN = 10;
let count = 0;

/** `suggest(text)` -> [{text: the whole new text, label, hint}]. Returns {node, close()}: the field with its list. */
export function completed(input, label, suggest) {
  count += 1;
  const id = `completion-${count}`;
  const list = h('ul.picker-list', { id, role: 'listbox', 'aria-label': label, hidden: true });
  const node = h('div.completed', {}, input, list);
  let found = [];
  let active = -1;
  setAttr(input, 'role', 'combobox');
  setAttr(input, 'aria-autocomplete', 'list');
  setAttr(input, 'aria-controls', id);
  setAttr(input, 'aria-expanded', 'false');
  setAttr(input, 'autocomplete', 'off');

  function draw() {
    list.replaceChildren(...found.map(option));
    show(list, found.length > 0);
    setAttr(input, 'aria-expanded', found.length > 0 ? 'true' : 'false');
    setAttr(input, 'aria-activedescendant', active >= 0 ? `${id}-${active}` : null);
  }

  function option(one, index) {
    const item = h('li.picker-option', { id: `${id}-${index}`, role: 'option', 'aria-selected': index === active ? 'true' : 'false' }, h('span.strong', {}, one.label), ' ', h('span.muted', {}, one.hint || ''));
    item.addEventListener('mousedown', (event) => {
      event.preventDefault(); // the field keeps the focus
      take(one);
    });
    return item;
  }

  function refresh() {
    found = input.selectionEnd === input.value.length ? suggest(input.value).slice(0, SHOWN) : [];
    active = -1;
    draw();
  }

  function close() {
    found = [];
    active = -1;
    draw();
  }

  function take(one) {
    input.value = one.text;
    input.dispatchEvent(new Event('input', { bubbles: true }));
  }

  input.addEventListener('input', refresh);
  input.addEventListener('blur', close);
  input.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      if (list.hidden) refresh();
      if (!found.length) return;
      const step = event.key === 'ArrowDown' ? 1 : -1;
      active = active < 0 ? (step > 0 ? 0 : found.length - 1) : (active + step + found.length) % found.length;
      draw();
    } else if ((event.key === 'Enter' || event.key === 'Tab') && active >= 0) {
      take(found[active]);
    } else if (event.key === 'Escape' && !list.hidden) {
      close();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  });
  return { node, close };
}
