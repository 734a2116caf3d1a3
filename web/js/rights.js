/** The rights of this browser: operators may act, viewers may read. The manager enforces them; here they only affect the display. */

let role = 'operator';

export function setRole(next) {
  role = next || 'operator';
  document.documentElement.dataset.role = role; // base.css hides elements with .acts for viewers
}

export const mayAct = () => role === 'operator';

/** Marks a control that changes something, which is hidden for viewers. */
export function acts(node) {
  node.classList.add('acts');
  return node;
}
