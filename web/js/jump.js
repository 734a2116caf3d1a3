/** Navigation by typing (Ctrl-K, or "/" on a page without a filter), and the list of keys ("?"). */

import { VERBS, act, allowed } from './actions.js';
import { fill, h, setAttr, show } from './dom.js';
import { t } from './i18n.js';
import { mayAct } from './rights.js';
import { link } from './router.js';

const PAGES = ['overview', 'workers', 'groups', 'hosts', 'gpus', 'logs', 'operations', 'recovery', 'events', 'admin', 'api'];
const SECTIONS = ['notifications', 'tokens', 'audit', 'system']; // of the page admin
const FOUND = 12;

/** Opens the box; `store` provides the names. */
export function openJump(store) {
  if (document.querySelector('dialog.jump')) return;
  const input = h('input.input', { type: 'search', role: 'combobox', 'aria-expanded': 'true', 'aria-controls': 'jump-list', 'aria-label': t('jump.label'), placeholder: t('jump.hint'), autocomplete: 'off' });
  const list = h('ul.jump-list', { id: 'jump-list', role: 'listbox', 'aria-label': t('jump.label') });
  const none = h('p.muted', { hidden: true }, t('jump.none'));
  const dialog = h('dialog.dialog.jump', { 'aria-label': t('jump.label') }, input, list, none);
  let found = [];
  let chosen = 0;

  function draw() {
    found = search(store, input.value);
    chosen = 0;
    fill(list, ...found.map((place, at) => option(place, at)));
    show(none, found.length === 0);
    mark();
  }

  function option(place, at) {
    return h('li', { id: `jump-${at}`, role: 'option', on: { click: () => go(at) } }, h('span.jump-kind', {}, place.kind), ' ', h('span', {}, place.name));
  }

  function mark() {
    [...list.children].forEach((node, at) => {
      setAttr(node, 'aria-selected', at === chosen ? 'true' : 'false');
      if (at === chosen) node.scrollIntoView({ block: 'nearest' });
    });
    setAttr(input, 'aria-activedescendant', found.length ? `jump-${chosen}` : null);
  }

  function go(at) {
    if (!found[at]) return;
    const place = found[at];
    dialog.close();
    if (place.run) place.run();
    else location.hash = place.href;
  }

  input.addEventListener('input', draw);
  input.addEventListener('keydown', (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      chosen = Math.max(0, Math.min(found.length - 1, chosen + step));
      mark();
    } else if (event.key === 'Enter') {
      go(chosen);
    } else {
      return;
    }
    event.preventDefault();
  });
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  draw();
  input.focus();
}

/** Pages, hosts, workers and actions whose name contains every word; names that begin with the text come first. Pure. */
export function search(store, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  const add = (name, kind, href) => {
    const low = name.toLowerCase();
    if (words.every((word) => low.includes(word))) found.push({ name, kind, href, first: words.length > 0 && low.startsWith(words[0]) });
    return found.length < FOUND * 8;
  };
  for (const page of PAGES) add(t(`nav.${page}`), t('jump.page'), link(page));
  for (const one of SECTIONS) add(t(`admin.${one}`), t('jump.page'), link('admin', one));
  if (words.length) {
    for (const host of store.agents()) if (!add(host.agent, t('jump.host'), link('host', host.agent))) break;
    for (const id of store.workers.keys()) if (!add(id, t('jump.worker'), link('worker', id))) break;
  }
  if (words.length > 1 && mayAct()) found.push(...actions(store, words));
  return [...found.filter((place) => place.first), ...found.filter((place) => !place.first)].slice(0, FOUND);
}

/** "restart train-7": the applicable actions on the workers whose name contains the following words. */
function actions(store, [verbWord, ...words]) {
  const verbs = VERBS.filter((verb) => verb.startsWith(verbWord) || t(`action.${verb}`).toLowerCase().startsWith(verbWord));
  const found = [];
  if (!verbs.length) return found;
  for (const worker of store.workers.values()) {
    if (!words.every((word) => worker.worker_id.toLowerCase().includes(word))) continue;
    for (const verb of verbs.filter((one) => allowed(one, worker))) {
      found.push({ name: t('jump.act', { action: t(`action.${verb}`), worker: worker.worker_id }), kind: t('jump.action'), run: () => act(verb, worker), first: true });
    }
    if (found.length >= FOUND) break;
  }
  return found;
}

const KEYS = [
  ['everywhere', [['/', 'filter'], ['Ctrl K', 'jump'], ['?', 'help']]],
  ['grid', [['↑ ↓', 'rows'], ['PgUp PgDn', 'pages'], ['Home End', 'ends'], ['← →', 'controls'], ['Enter', 'open']]],
  ['log', [['Enter', 'before'], ['Shift Enter', 'after'], ['End', 'follow']]],
  ['picking', [['Space', 'pick'], ['Shift', 'range'], ['Ctrl A', 'all'], ['Esc', 'clear']]],
]; // prettier-ignore

export function openHelp() {
  if (document.querySelector('dialog[open]')) return;
  const close = h('button.button', { type: 'button' }, t('close'));
  const api = h('a', { href: link('api'), on: { click: () => dialog.close() } }, t('api.link'));
  const group = ([name, keys]) => [
    h('h3', {}, t(`keys.${name}`)),
    h('dl.keys', {}, keys.map(([key, what]) => h('div', {}, h('dt', {}, key.split(' ').map((one) => h('kbd', {}, one))), h('dd', {}, t(`keys.to_${what}`))))),
  ];
  const dialog = h('dialog.dialog', { 'aria-labelledby': 'help-title' }, h('h2', { id: 'help-title' }, t('keys.title')), KEYS.map(group), h('p', {}, api), h('div.dialog-buttons', {}, close));
  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
}
