/**
 * Renders a line of output: escape sequences for colours become class names, others are removed, and every other control
 * character is replaced by its symbol. Text in, text and class names out; never markup. Pure.
 */

// Escape sequences of terminals: CSI …, OSC … (BEL or ST), strings, and the short ones.
const ESCAPES = /\u001b(?:\[([0-?]*)[ -/]*([@-~])|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[PX^_][^\u001b]*(?:\u001b\\)?|[ -/]*[0-~])/g;
// Control characters and bidirectional controls: a line must be displayed in the order in which it was written.
const STEERING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
const COLOURS = ['black', 'red', 'green', 'yellow', 'blue', 'magenta', 'cyan', 'white'];

function picture(one) {
  const code = one.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return '\u2421';
  return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, '0')}\u27e9`;
}

function plain(text) {
  return text.replace(STEERING, picture);
}

/** A line in displayable form, without colours. */
export function printable(text) {
  return plain(text.includes('\u001b') ? text.replace(ESCAPES, '') : text);
}

/** [{text, style}…]: the pieces of a line and their class names. */
export function pieces(text) {
  if (!text.includes('\u001b')) return [{ text: plain(text), style: '' }];
  const found = [];
  const style = {};
  let from = 0;
  for (const match of text.matchAll(ESCAPES)) {
    add(found, text.slice(from, match.index), style);
    from = match.index + match[0].length;
    if (match[2] === 'm') applyCodes(style, match[1]);
  }
  add(found, text.slice(from), style);
  return found;
}

function add(found, text, style) {
  if (text) found.push({ text: plain(text), style: styleClasses(style) });
}

function styleClasses({ bold, dim, italic, underline, inverse, colour, ground }) {
  const names = [bold && 'ansi-bold', dim && 'ansi-dim', italic && 'ansi-italic', underline && 'ansi-underline'];
  const hue = inverse ? ground || colour || 'white' : colour;
  const back = inverse ? colour || 'white' : ground;
  // A full background would need a text colour that is legible on it in both themes; its hue with a soft background
  // suffices.
  if (back && back !== 'black') names.push(`ansi-${back}`, 'ansi-ground');
  else if (hue) names.push(`ansi-${hue}`);
  return names.filter(Boolean).join(' ');
}

/** Applies codes such as "1;31". */
function applyCodes(style, codes) {
  const numbers = (codes || '0').split(/[;:]/).map((one) => Number(one) || 0);
  for (let index = 0; index < numbers.length; index += 1) {
    const code = numbers[index];
    if (code === 0) for (const name of Object.keys(style)) delete style[name];
    else if (code === 1) style.bold = true;
    else if (code === 2) style.dim = true;
    else if (code === 3) style.italic = true;
    else if (code === 4) style.underline = true;
    else if (code === 7) style.inverse = true;
    else if (code === 22) style.bold = style.dim = false;
    else if (code === 23) style.italic = false;
    else if (code === 24) style.underline = false;
    else if (code === 27) style.inverse = false;
    else if (code >= 30 && code <= 37) style.colour = COLOURS[code - 30];
    else if (code >= 90 && code <= 97) style.colour = COLOURS[code - 90];
    else if (code >= 40 && code <= 47) style.ground = COLOURS[code - 40];
    else if (code >= 100 && code <= 107) style.ground = COLOURS[code - 100];
    else if (code === 39) style.colour = null;
    else if (code === 49) style.ground = null;
    else if (code === 38 || code === 48) {
      const [colour, used] = extended(numbers.slice(index + 1));
      style[code === 38 ? 'colour' : 'ground'] = colour;
      index += used;
    }
  }
}

/** 5;N or 2;R;G;B as the nearest of the eight colours that are legible in both themes. */
function extended(rest) {
  if (rest[0] === 5) {
    const n = rest[1] || 0;
    if (n < 16) return [COLOURS[n % 8], 2];
    if (n > 231) return [n < 244 ? 'black' : 'white', 2];
    const cube = n - 16;
    return [nearest(Math.floor(cube / 36) * 51, (Math.floor(cube / 6) % 6) * 51, (cube % 6) * 51), 2];
  }
  if (rest[0] === 2) return [nearest(rest[1] || 0, rest[2] || 0, rest[3] || 0), 4];
  return [null, 0];
}

function nearest(red, green, blue) {
  const most = Math.max(red, green, blue);
  const least = Math.min(red, green, blue);
  if (most - least < 40) return most < 110 ? 'black' : 'white';
  const middle = (most + least) / 2;
  return COLOURS[(red > middle ? 1 : 0) + (green > middle ? 2 : 0) + (blue > middle ? 4 : 0)];
}
