/** Copying to the clipboard, also where the page came over plain http, which gives scripts no `navigator.clipboard`. */

/** Whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

function copyBySelection(text) {
  const before = document.activeElement;
  const field = document.createElement('textarea');
  field.value = text;
  field.className = 'hidden-text';
  const home = document.querySelector('dialog[open]') || document.body; // a dialog keeps the focus within itself
  home.append(field);
  field.select();
  const done = document.execCommand('copy');
  field.remove();
  if (before instanceof HTMLElement) before.focus();
  return done;
}
