/** Administration of the fleet: notifications, tokens, the audit, the managers. One tab each. */

import { h } from '../dom.js';
import { t } from '../i18n.js';
import { link } from '../router.js';
import { auditSection } from './admin/audit.js';
import { notificationsSection } from './admin/notifications.js';
import { systemSection } from './admin/system.js';
import { tokensSection } from './admin/tokens.js';
import { pageHead } from './parts.js';

const SECTIONS = { notifications: notificationsSection, tokens: tokensSection, audit: auditSection, system: systemSection };

export function adminPage({ session, store, id, query }) {
  const name = SECTIONS[id] ? id : 'notifications';
  const section = SECTIONS[name]({ session, store, query });
  const tab = (one) => h('a.tab', { href: link('admin', one), 'aria-current': one === name ? 'page' : null }, t(`admin.${one}`));
  const tabs = h('nav.tabs', { 'aria-label': t('admin.sections') }, Object.keys(SECTIONS).map(tab));
  const node = h('div.page.admin', {}, pageHead(t('nav.admin'), tabs), section.node);
  return {
    node,
    title: t(`admin.${name}`),
    topics: [],
    update: section.update || (() => {}),
    started: section.started,
    unmount: section.stop,
  };
}
