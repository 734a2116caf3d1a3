/** The logs of several workers in one view, merged by time across hosts. The address contains the workers and the filters. */

import { emptyBox, notify } from '../dialogs.js';
import { h, keyed, setAttr, setText, show } from '../dom.js';
import { compareNames } from '../format.js';
import { t } from '../i18n.js';
import { icon } from '../icons.js';
import { LogView, logQuery, readChosen } from '../logview.js';
import { workerPicker } from '../picker.js';
import { link, replaceQuery } from '../router.js';
import { MAX_WORKERS } from '../selection.js';
import { GLYPHS, stateName } from '../status.js';
import { logTabs, pageHead } from './parts.js';

const SUGGESTED = 8;

export function logsPage({ store, live, query, kept }) {
  const { workers, chosen } = readQuery(query);
  let ids = workers;

  const view = new LogView({ live, workers: ids, merged: true, chosen, onChoose: (next) => write(next), kept });
  const picker = workerPicker({ workers: () => store.workers.values(), taken: () => ids, onPick: (picked) => add(picked) });
  const chips = h('ul.chosen', { 'aria-label': t('logs.chosen') });
  const count = h('span.count', { role: 'status' });
  const offered = suggestions((picked) => add(picked));
  const hint = emptyBox(t('logs.choose'), h('p', {}, t('logs.choose_how')), offered);
  const node = h('div.page.fills', {}, pageHead(t('nav.logs'), logTabs('logs'), count), h('div.toolbar', {}, picker, chips), hint, view.node);

  function write(next = view.chosen) {
    replaceQuery({ w: ids.join(','), ...logQuery(next), at: ids.length === 1 ? next.at : '' });
  }

  function add(picked) {
    const wanted = [...new Set([...ids, ...picked])];
    if (wanted.length > MAX_WORKERS) notify(t('logs.too_many', { n: MAX_WORKERS }));
    choose(wanted.slice(0, MAX_WORKERS));
  }

  function choose(wanted) {
    ids = wanted;
    if (view.chosen.at) view.choose({}); // an address belongs to one worker
    write();
    view.setWorkers(ids);
    update();
  }

  function update() {
    view.update(ids.map((id) => store.workers.get(id)).filter(Boolean));
    const items = ids.map((id) => ({ id, worker: store.workers.get(id), hue: view.hues.get(id) }));
    keyed(chips, items, (item) => item.id, (item) => chip(item, remove));
    show(hint, ids.length === 0);
    if (!ids.length) offered.update(store);
    show(view.node, ids.length > 0);
    setText(count, t('logs.workers', { n: ids.length, most: MAX_WORKERS }));
  }

  function remove(id) {
    const at = ids.indexOf(id);
    choose(ids.filter((one) => one !== id));
    const next = chips.querySelectorAll('button')[Math.min(at, ids.length - 1)] || picker.querySelector('input');
    next.focus();
  }

  function setQuery(next) {
    const wanted = readQuery(next);
    ids = wanted.workers;
    view.setWorkers(ids);
    view.setChosen(wanted.chosen);
    update();
  }

  return { node, title: t('nav.logs'), topics: ['workers'], update, setQuery, started: () => view.start(), keep: () => view.keep(), unmount: () => view.destroy() };
}

/** Suggestions for an empty page: failed workers, each group, each host. */
function suggestions(onPick) {
  const box = h('div.suggestions');
  let known = -1;
  box.update = (store) => {
    const { version } = store.tables.workers;
    if (version === known) return;
    known = version;
    const workers = [...store.workers.values()];
    const rows = [
      [t('logs.by_trouble'), [[t('state.failed'), workers.filter((one) => one.state === 'failed')], [t('state.backoff'), workers.filter((one) => one.state === 'backoff')]]],
      [t('workers.group'), grouped(workers, (one) => one.group)],
      [t('workers.host'), grouped(workers, (one) => one.host)],
    ].map(([label, choices]) => [label, choices.filter(([, members]) => members.length).slice(0, SUGGESTED)]);
    const filled = rows.filter(([, choices]) => choices.length);
    keyed(box, filled.map(([label, choices]) => ({ label, choices })), (row) => row.label, () => suggestionRow(onPick));
  };
  return box;
}

function suggestionRow(onPick) {
  const label = h('span.muted');
  const buttons = h('span.suggestion-row');
  const row = h('div.suggestion-row', {}, label, buttons);
  row.update = (next) => {
    setText(label, next.label);
    keyed(buttons, next.choices, ([name]) => name, () => suggestion(onPick));
  };
  return row;
}

function suggestion(onPick) {
  let members = [];
  const button = h('button.button.small', { type: 'button', on: { click: () => onPick(members.slice(0, MAX_WORKERS).map((one) => one.worker_id)) } });
  button.update = ([name, found]) => {
    members = found;
    setText(button, t('logs.suggestion', { name, n: found.length }));
  };
  return button;
}

function grouped(workers, read) {
  const found = new Map();
  for (const worker of workers) {
    const name = read(worker);
    if (!name) continue;
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(worker);
  }
  return [...found].sort(([a], [b]) => compareNames(a, b));
}

function readQuery(query) {
  const workers = [...new Set((query.get('w') || '').split(',').filter(Boolean))].slice(0, MAX_WORKERS);
  return { workers, chosen: readChosen(query, /^newest$/) };
}

function chip({ id }, remove) {
  const glyph = h('span.glyph', { 'aria-hidden': 'true' });
  const name = h('a', { href: link('worker', id) }, id);
  const close = h('button.icon-button', { type: 'button', 'aria-label': t('logs.remove', { worker: id }), on: { click: () => remove(id) } }, icon('close'));
  const item = h('li.chosen-worker', {}, glyph, name, close);
  item.update = ({ worker, hue }) => {
    setAttr(item, 'class', `chosen-worker ${hue || ''}`);
    setText(glyph, worker ? GLYPHS[worker.state] || '?' : '?');
    setAttr(item, 'title', worker ? t('logs.on', { state: stateName(worker.state), host: worker.host || t('none') }) : t('logs.unknown_worker'));
  };
  return item;
}
