/** Entry point of the portal: language, session, live data, and one page at a time. Wires all modules. */

import { asked as firstAsked, askFirst, loaded } from './first.js';
import { forgetAhead } from './ahead.js';
import { ApiError, get, onLoggedOut, post, setCsrf } from './api.js';
import { errorBox, notifyError } from './dialogs.js';
import { h, paced } from './dom.js';
import { chooseUtc } from './format.js';
import { chooseLanguage, t } from './i18n.js';
import { openHelp, openJump } from './jump.js';
import { Live } from './live.js';
import { isPage, loadOthers, loadPage, pageNamed } from './pages.js';
import { loginPage } from './pages/login.js';
import { setRole } from './rights.js';
import { go, onRoute, readRoute } from './router.js';
import { Shell, languageSwitch } from './shell.js';
import { Store } from './store.js';
import { Visits } from './visits.js';

const LISTS = ['workers', 'hosts'];
const TOPICS = ['operations', 'events'];
const TICK_MS = 1000; // ages and countdowns
const DRAW_EVERY_MS = 80; // minimum interval between drawings
const LOAD_OTHERS_AFTER_MS = 3000; // time after the first page at which the modules of the others are loaded

class App {
  constructor() {
    this.root = document.getElementById('app');
    this.store = new Store();
    this.live = new Live({ onState: () => this.shell && this.shell.update(), onRefused: () => this.checkSession() });
    this.session = null;
    this.first = {}; // the lists' first snapshots, until they are used
    this.shell = null;
    this.page = null;
    this.visits = new Visits();
    this.redraw = paced(() => this.update(), DRAW_EVERY_MS);
    for (const topic of LISTS) {
      this.store.on(topic, this.redraw);
      this.live.subscribe(`rows:${topic}`, (frame) => this.store.takeRows(topic, frame), () => this.snapshot(topic));
    }
    for (const topic of TOPICS) {
      this.store.on(topic, this.redraw);
      this.live.subscribe(topic, (frame) => (frame.t === 'snap' ? this.store.snapshot(topic, frame.items) : this.store.delta(topic, frame)));
    }
    onLoggedOut(() => this.showLogin());
    onRoute(() => this.route());
    setInterval(() => !document.hidden && this.redraw(), TICK_MS);
    document.addEventListener('keydown', (event) => this.jump(event));
  }

  async start() {
    await loaded;
    await this.enter(firstAsked);
    setTimeout(() => loadOthers().catch(() => {}), LOAD_OTHERS_AFTER_MS); // opening a page tries again
  }

  /** The first snapshot is already loaded; later ones are requested. */
  snapshot(topic) {
    const first = this.first[topic];
    this.first[topic] = null;
    return first || get(`/api/live/${topic}`, { quiet401: true });
  }

  /** Enters the portal; if the manager is down, shows a message with a retry. */
  async enter(asked = askFirst()) {
    try {
      const { session, lists } = await asked;
      this.first = lists;
      if (session.role) await this.showApp(session);
      else this.showLogin(session);
    } catch (error) {
      if (error.status === 401 || error.status === 403) this.showLogin();
      else this.root.replaceChildren(h('main.login', { id: 'content' }, errorBox(error, () => this.enter())));
    }
  }

  /** Checks the session after a refused or failed live connection. Only an explicit refusal leaves the page. */
  async checkSession() {
    try {
      const session = await get('/api/session', { quiet401: true });
      if (!session.role) this.showLogin(session);
      else if (session.role !== this.session.role) await this.showApp(session);
      else setCsrf(session.csrf);
    } catch (error) {
      if (error.status === 401) this.showLogin();
    }
  }

  /** `refusal`: the reason, if the manager gave one. */
  showLogin(refusal = {}) {
    if (this.loginShown) return;
    this.loginShown = true;
    this.live.stop();
    this.leavePage();
    this.shell = null;
    const login = loginPage(refusal, (session) => this.showApp(session));
    const corner = h('header.login-corner', {}, languageSwitch((language) => this.changeLanguage(language)));
    this.root.replaceChildren(corner, login.node);
    document.title = `${t('login.title')} · ProcGuard`;
    login.focus();
  }

  async showApp(session) {
    this.loginShown = false;
    this.session = session;
    setCsrf(session.csrf);
    setRole(session.role);
    this.leavePage();
    this.shell = new Shell({
      live: this.live,
      store: this.store,
      onLanguage: (language) => this.changeLanguage(language),
      onZone: (utc) => this.changeZone(utc),
      onLogOut: () => this.logOut(),
    });
    this.shell.showSession(session);
    this.root.replaceChildren(this.shell.node);
    this.live.start();
    await null; // snapshots that are already here are taken first: the page is drawn once, with its rows
    this.route();
  }

  async changeLanguage(language) {
    try {
      await chooseLanguage(language);
    } catch (error) {
      notifyError(error);
      return;
    }
    this.leavePage();
    if (this.loginShown) {
      this.loginShown = false;
      await this.enter(); // shows the reason in the new language
    } else {
      await this.showApp(this.session);
    }
  }

  changeZone(utc) {
    chooseUtc(utc);
    this.leavePage();
    this.showApp(this.session);
    document.querySelector('.zone').focus();
  }

  async logOut() {
    try {
      await post('/api/logout');
      forgetAhead();
    } catch (error) {
      notifyError(error);
      return;
    }
    this.showLogin();
  }

  leavePage() {
    if (this.page && this.page.unmount) this.page.unmount();
    this.page = null;
  }

  route() {
    if (!this.shell) return;
    const route = readRoute();
    if (!isPage(route)) {
      go('overview');
      return;
    }
    const make = pageNamed(route.page);
    if (!make) {
      this.loadRoute(route.page);
      return;
    }
    const returned = this.visits.turn(this.page);
    const place = `${route.page}/${route.id}`;
    if (this.page && this.place === place && this.page.setQuery) {
      this.page.setQuery(route.query);
      if (returned) this.visits.restore(returned);
      return;
    }
    const moved = this.page !== null;
    this.leavePage();
    this.place = place;
    this.page = make({ store: this.store, live: this.live, session: this.session, id: route.id, query: route.query, kept: returned && returned.page });
    this.shell.place(this.page.node);
    this.shell.showPage(route.page);
    document.title = `${this.page.title} · ProcGuard`;
    this.update();
    if (this.page.started) this.page.started();
    if (moved) this.page.node.querySelector('h1').focus({ preventScroll: true });
    if (returned) this.visits.restore(returned);
  }

  /** Shows the page of the address once its module is loaded; until then, the previous page stays. */
  async loadRoute(name) {
    try {
      await loadPage(name);
    } catch {
      if (!this.shell || readRoute().page !== name) return;
      this.leavePage();
      // a module that failed once may fail again without a new request, therefore everything is loaded again
      const box = errorBox(new ApiError({ code: 'unreachable' }), () => location.reload());
      this.shell.place(h('div.page', {}, h('h1', {}, 'ProcGuard'), box));
      return;
    }
    if (readRoute().page === name) this.route();
  }

  update() {
    if (!this.shell) return;
    this.shell.update();
    if (this.page) this.page.update();
  }

  /** "/" focuses the page's filter, Ctrl-K opens the navigation box, "?" shows the keys; not while typing. */
  jump(event) {
    if (!this.shell) return;
    if (event.key.toLowerCase() === 'k' && (event.ctrlKey || event.metaKey) && !event.altKey) {
      event.preventDefault();
      openJump(this.store);
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (event.key === '?') {
      openHelp();
    } else if (event.key === '/') {
      const field = document.querySelector('[data-jump]');
      event.preventDefault();
      if (field && field.offsetParent !== null) {
        field.focus();
        field.select();
      } else {
        openJump(this.store);
      }
    }
  }
}

function isTyping(node) {
  return ['textarea', 'select', 'dialog'].some((one) => node.closest(one)) || Boolean(node.closest('input') && node.type !== 'checkbox');
}

new App().start();
