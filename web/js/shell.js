/** The frame of every page: navigation, connection badge, language, theme, log out. */

import { commands } from './commands.js';
import { h, setAttr, setClass, setText, show } from './dom.js';
import { formatDuration, inUtc, zoneName } from './format.js';
import { LANGUAGES, currentLanguage, t } from './i18n.js';
import { icon } from './icons.js';
import { openHelp, openJump } from './jump.js';
import { isLive } from './operations.js';
import { link, readRoute } from './router.js';
import { recall, remember } from './storage.js';

const PAGES = ['overview', 'workers', 'hosts', 'gpus', 'logs', 'operations', 'recovery', 'events', 'admin'];
const PARENTS = { worker: 'workers', compare: 'workers', host: 'hosts', operation: 'operations', search: 'logs', groups: 'workers' };
const THEMES = ['auto', 'light', 'dark'];
const THEME_ICONS = { auto: 'auto', light: 'sun', dark: 'moon' };

export class Shell {
  /** `onLanguage(language)`, `onZone(utc)`, `onLogOut()`; `live` and `store` provide the badge and the counts beside the pages. */
  constructor({ live, store, onLanguage, onZone, onLogOut }) {
    this.live = live;
    this.store = store;
    this.counts = {};
    this.current = null; // the link of the page that is shown
    this.links = new Map(PAGES.map((page) => [page, navLink(page)]));
    this.badge = connectionBadge();
    this.logout = h('button.icon-button', { type: 'button', hidden: true, 'aria-label': t('logout'), title: t('logout'), on: { click: onLogOut } }, icon('out'));
    const jump = h('button.icon-button', { type: 'button', 'aria-label': t('jump.open'), title: t('jump.open'), on: { click: () => openJump(store) } }, icon('search'));
    const help = h('button.icon-button.help', { type: 'button', 'aria-label': t('keys.title'), title: t('keys.title'), on: { click: openHelp } }, h('span', { 'aria-hidden': 'true' }, '?'));
    this.role = h('details.role', { hidden: true }, h('summary', {}, t('role.viewer')), h('p', {}, t('role.viewer_why'), ' ', h('code', {}, commands('invoke token.create'))));
    this.who = h('a.who', { href: link('admin', 'system') });
    this.main = h('main', { id: 'content', tabindex: '-1' });
    const skip = h('a.skip', { href: '#content', on: { click: (event) => this.skipToContent(event) } }, t('skip'));
    const brand = h('a.brand', { href: link('overview') }, h('img', { src: document.querySelector('link[rel=icon]').href, alt: '', width: '24', height: '24' }), h('span', {}, 'ProcGuard'));
    this.node = h(
      'div.shell',
      {},
      skip,
      h(
        'header.side',
        {},
        brand,
        h('nav.nav', { 'aria-label': t('nav.label') }, h('ul', {}, [...this.links.values()].map((one) => h('li', {}, one)))),
        h('div.side-foot', {}, this.role, this.who, this.badge, h('div.switches', {}, languageSwitch(onLanguage), zoneSwitch(onZone), jump, help, themeSwitch(), this.logout)),
      ),
      this.main,
    );
    window.addEventListener('resize', () => this.showCurrent()); // a phone that was turned
  }

  skipToContent(event) {
    event.preventDefault();
    this.main.focus();
  }

  place(page) {
    const moved = this.main.firstChild !== null; // the first page is at its top; setting that would lay it out without its content
    this.main.replaceChildren(page);
    if (moved) this.main.scrollTop = 0;
  }

  showPage(name) {
    const current = PARENTS[name] || name;
    for (const [page, node] of this.links) setAttr(node, 'aria-current', page === current ? 'page' : null);
    this.current = this.links.get(current) || null;
    requestAnimationFrame(() => this.showCurrent()); // at once, it would lay out the page without its content
  }

  /** On a phone the bar is wider than the screen. */
  showCurrent() {
    if (this.current) this.current.scrollIntoView({ block: 'nearest', inline: 'nearest' });
  }

  showSession(session) {
    show(this.logout, ['cookie', 'session'].includes(session.via));
    show(this.role, session.role === 'viewer');
    const you = t('system.who', { name: session.name || t('none'), role: t(`role.${session.role}_name`) });
    setText(this.who, `${you} · ${session.version}`);
    setAttr(this.who, 'title', t('role.you', { name: you }));
  }

  /** The number of rows for which `isSo` is true, recounted only after a change. */
  counted(topic, isSo, name = topic) {
    const table = this.store.tables[topic];
    const known = this.counts[name];
    if (!known || known.version !== table.version) {
      let n = 0;
      for (const row of table.rows.values()) if (isSo(row)) n += 1;
      this.counts[name] = { version: table.version, n };
    }
    return this.counts[name].n;
  }

  update() {
    this.badge.update(this.live);
    this.links.get('workers').update(this.counted('workers', (worker) => worker.state === 'failed'));
    this.links.get('hosts').update(this.counted('hosts', (agent) => agent.agent_state === 'pending'));
    const hasGpus = this.counted('hosts', (agent) => agent.gpus > 0, 'gpus') > 0;
    show(this.links.get('gpus').parentNode, hasGpus || readRoute().page === 'gpus');
    this.links.get('operations').update([...this.store.operations.values()].filter(isLive).length);
  }
}

function navLink(page) {
  const count = h('span.nav-count', { hidden: true });
  const node = h(`a.nav-${page}`, { href: link(page) }, icon(page), h('span.nav-word', {}, t(`nav.${page}`)), count);
  node.update = (n) => {
    setText(count, n);
    setAttr(count, 'aria-label', t(`nav.${page}_count`, { n }));
    setAttr(count, 'role', 'img');
    show(count, n > 0);
  };
  return node;
}

/** live / stale N s / reconnecting. Data is never removed; the badge shows its age. */
function connectionBadge() {
  const glyph = h('span.glyph', { 'aria-hidden': 'true' });
  const word = h('span', { role: 'status' });
  const age = h('span.badge-age');
  const badge = h('div.badge', {}, glyph, word, age);
  badge.update = (live) => {
    setClass(badge, `badge is-${live.state}`);
    setText(glyph, live.state === 'live' ? '●' : '↻');
    setText(word, t(`live.${live.state}`));
    const stale = live.state === 'reconnecting' && live.lastFrameMs;
    setText(age, stale ? t('live.stale', { d: formatDuration((Date.now() - live.lastFrameMs) / 1000) }) : '');
    show(age, Boolean(stale));
  };
  return badge;
}

export function languageSwitch(onLanguage) {
  const current = currentLanguage();
  const select = h(
    'select.input.language',
    { 'aria-label': t('language'), on: { change: () => onLanguage(select.value) } },
    LANGUAGES.map((one) => h('option', { value: one, lang: one, selected: one === current }, t(`language.${one}`))),
  );
  return select;
}

/** A switch between UTC, as in logs of other machines, and the time zone of this browser. */
function zoneSwitch(onZone) {
  const name = t('zone.now', { zone: zoneName() });
  const button = h('button.icon-button.zone', { type: 'button', 'aria-pressed': inUtc() ? 'true' : 'false', 'aria-label': name, title: name }, t('zone.utc'));
  button.addEventListener('click', () => onZone(!inUtc()));
  return button;
}

function themeSwitch() {
  const button = h('button.icon-button', { type: 'button' });
  const showTheme = () => {
    const theme = document.documentElement.dataset.theme;
    button.replaceChildren(icon(THEME_ICONS[theme]));
    const name = t('theme.now', { theme: t(`theme.${theme}`) });
    setAttr(button, 'aria-label', name);
    setAttr(button, 'title', name);
  };
  button.addEventListener('click', () => {
    const current = document.documentElement.dataset.theme;
    const next = THEMES[(THEMES.indexOf(current) + 1) % THEMES.length];
    document.documentElement.dataset.theme = next;
    remember('theme', next === 'auto' ? null : next);
    showTheme();
  });
  document.documentElement.dataset.theme = THEMES.includes(recall('theme')) ? recall('theme') : 'auto';
  showTheme();
  return button;
}
