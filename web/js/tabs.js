/** Tabs over panels with the usual keyboard control: arrow keys, Home and End; the open tab is in the address. */

import { h, setAttr, show } from './dom.js';
import { readRoute, replaceQuery } from './router.js';

/** `tabs`: [{name, label, panel}]; `onShow(name)` after each change. {node, open(name), current()} */
export function tabbed({ label, tabs, onShow = () => {} }) {
  const buttons = tabs.map(({ name, label: word }) =>
    h('button.tab', { type: 'button', role: 'tab', id: `tab-${name}`, 'aria-controls': `panel-${name}`, data: { tab: name }, on: { click: () => choose(name) } }, word),
  );
  const panels = tabs.map(({ name, panel }) => h('div.tab-panel', { role: 'tabpanel', id: `panel-${name}`, 'aria-labelledby': `tab-${name}` }, panel));
  const list = h('div.tab-list', { role: 'tablist', 'aria-label': label }, buttons);
  const node = h('div.tabbed', {}, list, panels);
  let current = '';

  function open(name) {
    current = tabs.some((tab) => tab.name === name) ? name : tabs[0].name;
    tabs.forEach((tab, at) => {
      const chosen = tab.name === current;
      setAttr(buttons[at], 'aria-selected', chosen ? 'true' : 'false');
      setAttr(buttons[at], 'tabindex', chosen ? '0' : '-1');
      show(panels[at], chosen);
    });
    onShow(current);
  }

  function choose(name) {
    open(name);
    const query = Object.fromEntries(readRoute().query);
    replaceQuery({ ...query, tab: name === tabs[0].name ? '' : name });
  }

  list.addEventListener('keydown', (event) => {
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const next = buttons[(to + buttons.length) % buttons.length];
    choose(next.dataset.tab);
    next.focus();
  });
  return { node, open, current: () => current };
}
