/** A button that opens a panel beneath it. Escape and a click elsewhere close it; the focus returns to the button. */

import { h, setAttr, show } from './dom.js';

let count = 0;

/** {node, open(), close(), button}; `onOpen()` after it opened. */
export function popover({ label, kind = '', content, onOpen = null, title = null }) {
  count += 1;
  const id = `popover-${count}`;
  const panel = h('div.popover', { id, hidden: true, role: 'group' }, content);
  const button = h('button.button.popover-button', { type: 'button', 'aria-expanded': 'false', 'aria-controls': id, 'aria-label': title, title }, label);
  const node = h(`div.popover-holder${kind ? `.${kind}` : ''}`, {}, button, panel);
  const away = (event) => {
    if (!node.contains(event.target)) made.close(false);
  };
  const made = {
    node,
    button,
    open() {
      show(panel, true);
      setAttr(button, 'aria-expanded', 'true');
      document.addEventListener('pointerdown', away);
      document.addEventListener('focusin', away);
      place(panel, button);
      if (onOpen) onOpen();
    },
    close(back = true) {
      show(panel, false);
      setAttr(button, 'aria-expanded', 'false');
      document.removeEventListener('pointerdown', away);
      document.removeEventListener('focusin', away);
      if (back) button.focus();
    },
  };
  button.addEventListener('click', () => (panel.hidden ? made.open() : made.close()));
  node.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || panel.hidden) return;
    event.stopPropagation();
    made.close();
  });
  return made;
}

/** Places the panel beneath its button, within the window. */
function place(panel, button) {
  panel.classList.remove('is-right');
  const { left } = button.getBoundingClientRect();
  if (left + panel.offsetWidth > document.documentElement.clientWidth - 8) panel.classList.add('is-right');
}
