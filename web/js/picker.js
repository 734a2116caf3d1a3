/** Selects workers by name: a field with suggestions; a glob or a selector (`group=trainers`) selects all that match. */

import { h, setAttr, show } from './dom.js';
import { compareNames } from './format.js';
import { t } from './i18n.js';
import { isCondition, parseSelector, selectorMatches } from './selector.js';
import { GLYPHS } from './status.js';

const SUGGESTED = 12;

/** `workers()`: all workers; `taken()`: ids that are already selected; `onPick(ids)`. */
export function workerPicker({ workers, taken, onPick }) {
  let active = -1;
  let found = [];
  const input = h('input.input.search', {
    type: 'search', role: 'combobox', 'aria-label': t('logs.add'), 'aria-expanded': 'false', 'aria-controls': 'picker-list', 'aria-autocomplete': 'list',
    placeholder: t('logs.add_hint'), autocomplete: 'off', spellcheck: 'false',
  }); // prettier-ignore
  const list = h('ul.picker-list', { id: 'picker-list', role: 'listbox', 'aria-label': t('logs.add'), hidden: true });
  const node = h('div.picker', {}, input, list);

  function matching(text) {
    const left = [...workers()].filter((worker) => !taken().includes(worker.worker_id));
    const words = text.trim();
    if (!words) return left;
    if (/[*?[=!]/.test(words) && words.split(',').every((part) => isCondition(part.trim()) || /^[\w.*?[\]-]+$/.test(part.trim()))) {
      const conditions = parseSelector(words);
      return left.filter((worker) => selectorMatches(conditions, worker));
    }
    const needles = words.toLowerCase().split(/\s+/);
    return left.filter((worker) => needles.every((one) => `${worker.worker_id} ${worker.host} ${worker.group || ''}`.toLowerCase().includes(one)));
  }

  function suggest() {
    found = matching(input.value).sort((a, b) => compareNames(a.worker_id, b.worker_id)).slice(0, SUGGESTED);
    active = -1;
    draw();
  }

  function draw() {
    list.replaceChildren(...found.map(option));
    open(found.length > 0);
  }

  function option(worker, index) {
    const glyph = h('span.glyph', { 'aria-hidden': 'true' }, GLYPHS[worker.state] || '?');
    const item = h(
      'li.picker-option',
      { id: `picker-${index}`, role: 'option', 'aria-selected': index === active ? 'true' : 'false' },
      glyph, h('span.strong', {}, worker.worker_id), ' ', h('span.muted', {}, worker.host || t('none')),
    ); // prettier-ignore
    item.addEventListener('mousedown', (event) => {
      event.preventDefault(); // the field keeps the focus
      pick([worker]);
    });
    return item;
  }

  function open(visible) {
    show(list, visible);
    setAttr(input, 'aria-expanded', visible ? 'true' : 'false');
    setAttr(input, 'aria-activedescendant', visible && active >= 0 ? `picker-${active}` : null);
  }

  function pick(chosen) {
    input.value = '';
    onPick(chosen.map((worker) => worker.worker_id));
    suggest();
    open(false);
  }

  function pressed(event) {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      if (list.hidden) suggest();
      const step = event.key === 'ArrowDown' ? 1 : -1;
      active = found.length ? (active + step + found.length) % found.length : -1;
      draw();
    } else if (event.key === 'Enter') {
      event.preventDefault();
      if (active >= 0) pick([found[active]]);
      else if (input.value.trim()) pick(/[*?[=]/.test(input.value) ? matching(input.value) : matching(input.value).slice(0, 1));
    } else if (event.key === 'Escape') {
      open(false);
    }
  }

  input.addEventListener('input', suggest);
  input.addEventListener('focus', suggest);
  input.addEventListener('blur', () => open(false));
  input.addEventListener('keydown', pressed);
  return node;
}
