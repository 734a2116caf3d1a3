/** What this browser may do: an operator acts, a viewer looks. The manager holds to it; here it only shows. */

let role = 'operator';

export function setRole(next) {
  role = next || 'operator';
  document.documentElement.dataset.role = role; // base.css: what is marked with .acts is not there for viewers
}

export const mayAct = () => role === 'operator';

/** Marks a control that changes something; for a viewer it is not there. */
export function acts(node) {
  node.classList.add('acts');
  return node;
}
