/** Selects values of a field to include or exclude: a button that opens a list with counts, and the selection as chips. */

import { debounced, fill, h, setAttr, setText, show } from './dom.js';
import { compareNames } from './format.js';
import { FIELDS, FIELD_NAMES, matches, sideOf } from './filters.js';
import { formatNumber, t } from './i18n.js';
import { icon } from './icons.js';
import { popover } from './popover.js';
import { STATES, stateName } from './status.js';

const LISTED = 100;

export function valueName(field, value) {
  return field === 'state' ? stateName(value) : value;
}

/**
 * The button of one field. `workers()`: all workers; `filters()`: the current filters; `onChoose(value, side)`: side is "in", "out"
 * or "" for neither.
 */
export function facetMenu(field, { workers, filters, onChoose }) {
  const search = h('input.input', { type: 'search', 'aria-label': t('facet.find', { field: t(`facet.${field}`) }), placeholder: t('facet.find_hint') });
  const list = h('ul.facet-values');
  const more = h('p.muted', { hidden: true });
  const none = h('p.muted', { hidden: true }, t('facet.none'));
  const chosen = h('span.facet-count');
  const menu = popover({
    label: [t(`facet.${field}`), ' ', chosen],
    kind: 'facet-menu',
    content: h('div.facet-panel', {}, search, list, more, none),
    onOpen: () => {
      search.value = '';
      draw();
      search.focus();
    },
  });
  search.addEventListener('input', debounced(draw, 60));

  /** The values with the number of workers that each would show: selected values first, then in descending order. */
  function draw() {
    const now = filters();
    const counts = new Map();
    for (const value of [...now.facets[field].in, ...now.facets[field].out]) counts.set(value, 0);
    for (const worker of workers()) {
      if (!matches(worker, now, field)) continue;
      for (const value of FIELDS[field](worker)) counts.set(value, (counts.get(value) || 0) + 1);
    }
    const wanted = search.value.trim().toLowerCase();
    const found = [...counts.keys()].filter((value) => !wanted || valueName(field, value).toLowerCase().includes(wanted));
    const rank = (value) => (sideOf(now.facets[field], value) ? 0 : 1);
    const order = field === 'state' ? (a, b) => STATES.indexOf(a) - STATES.indexOf(b) : (a, b) => rank(a) - rank(b) || counts.get(b) - counts.get(a) || compareNames(a, b);
    found.sort(order);
    fill(list, ...found.slice(0, LISTED).map((value) => valueItem(value, counts.get(value), sideOf(now.facets[field], value))));
    show(more, found.length > LISTED);
    setText(more, t('facet.more', { n: found.length - LISTED }));
    show(none, found.length === 0);
  }

  function valueItem(value, n, side) {
    const name = valueName(field, value);
    const choose = (wanted, refocus) => {
      onChoose(value, side === wanted ? '' : wanted);
      draw();
      const again = [...list.querySelectorAll('button')].find((button) => button.dataset.value === value && button.dataset.side === refocus);
      if (again) again.focus();
    };
    const button = (wanted, label, content) =>
      h(`button.facet-${wanted}`, { type: 'button', 'aria-pressed': side === wanted ? 'true' : 'false', 'aria-label': label, title: label, data: { value, side: wanted }, on: { click: () => choose(wanted, wanted) } }, content);
    return h(
      'li',
      {},
      button('in', t('facet.include', { value: name }), [h('span.facet-mark', { 'aria-hidden': 'true' }, side === 'in' ? '✓' : ''), h('span.facet-name', {}, name), h('span.facet-n', {}, formatNumber(n))]),
      button('out', t('facet.exclude', { value: name }), icon('exclude')),
    );
  }

  menu.update = () => {
    const { in: wanted, out } = filters().facets[field];
    const n = wanted.length + out.length;
    setText(chosen, n ? formatNumber(n) : '');
    show(chosen, n > 0);
    menu.node.classList.toggle('is-chosen', n > 0);
  };
  return menu;
}

/** The included and excluded values, each with a button that removes it. `.update(facets)`. */
export function chosenChips(onDrop, fields = FIELD_NAMES) {
  const list = h('ul.chosen', { 'aria-label': t('facet.chosen') });
  list.update = (facets) => {
    const items = fields.flatMap((field) => ['in', 'out'].flatMap((side) => facets[field][side].map((value) => ({ field, side, value }))));
    const written = items.map(({ field, side, value }) => `${field} ${side} ${value}`).join('\n');
    if (list.written === written) return;
    list.written = written;
    fill(list, ...items.map((item) => chip(item, onDrop)));
    show(list, items.length > 0);
    setAttr(list, 'role', 'list');
  };
  return list;
}

function chip({ field, side, value }, onDrop) {
  const words = t(side === 'in' ? 'facet.is' : 'facet.is_not', { field: t(`facet.${field}`), value: valueName(field, value) });
  const drop = h('button.icon-button', { type: 'button', 'aria-label': t('facet.drop', { what: words }), title: t('facet.drop', { what: words }), on: { click: () => onDrop(field, value) } }, icon('close'));
  return h(`li.chosen-${side}`, {}, h('span.chosen-words', { title: words }, words), drop);
}
