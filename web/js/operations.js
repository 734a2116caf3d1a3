/** Renders batch operations: their status, their progress, and the result of each worker with its cause. */

import { h, keyed, setAttr, setClass, setText } from './dom.js';
import { reasonOf } from './reasons.js';
import { formatNumber, hasText, t } from './i18n.js';
import { link } from './router.js';

export const LIVE = ['running', 'cancelling', 'halting'];
/** In the order of attention; the bar shows them in reverse. */
export const RESULTS = ['failed', 'expired', 'cancelled', 'skipped', 'pending', 'waiting', 'accepted', 'delivered', 'done'];
const BAR = ['done', 'pending', 'skipped', 'failed', 'expired', 'cancelled', 'delivered', 'accepted', 'waiting'];
const STATUS_GLYPHS = { running: '●', cancelling: '◁', halting: '◁', done: '✓', cancelled: '■', halted: '✖', interrupted: '?' };
const RESULT_GLYPHS = { waiting: '…', accepted: '▷', delivered: '▷', pending: '◷', done: '✓', failed: '✖', expired: '⧖', skipped: '–', cancelled: '■' };

export const isLive = (operation) => LIVE.includes(operation.status);
export const badCount = (operation) => (operation.counts.failed || 0) + (operation.counts.expired || 0);

export function endedCount(operation) {
  const open = ['waiting', 'accepted', 'delivered'].reduce((sum, name) => sum + (operation.counts[name] || 0), 0);
  return operation.total - open;
}

/** The selection as text: the selector, and the words of the filter. */
export function meant(operation) {
  const selector = ['', '*'].includes(operation.selector) ? t('operations.everybody') : operation.selector;
  return operation.q ? t('operations.meant_with', { selector, q: operation.q }) : selector;
}

export function operationTitle(operation) {
  return t('operations.title_of', { action: t(`action.${operation.command}`), n: operation.total });
}

/** The text of the manager's cause; otherwise the message of the manager or the worker. */
export function causeText(one) {
  return reasonOf(one, 'message') || t('operations.no_reason');
}

/** The status of an operation as it is shown: one that is done and has failures is "partly" failed. */
export function shownStatus(operation) {
  return operation.status === 'done' && badCount(operation) > 0 ? 'partly' : operation.status;
}

export function statusChip() {
  const glyph = h('span.glyph', { 'aria-hidden': 'true' });
  const word = h('span.word');
  const chip = h('span.chip', {}, glyph, word);
  chip.update = (operation) => {
    const variant = shownStatus(operation);
    setClass(chip, `chip op-${variant}`);
    setText(glyph, variant === 'partly' ? '✖' : STATUS_GLYPHS[operation.status] || '?');
    setText(word, t(`opstatus.${variant}`));
  };
  return chip;
}

export function resultChip() {
  const glyph = h('span.glyph', { 'aria-hidden': 'true' });
  const word = h('span.word');
  const chip = h('span.chip', {}, glyph, word);
  chip.update = ({ result }) => {
    setClass(chip, `chip result-${result}`);
    setText(glyph, RESULT_GLYPHS[result] || '?');
    setText(word, t(`result.${result}`));
  };
  return chip;
}

export const resultGlyph = (result) => RESULT_GLYPHS[result] || '?';

/** A bar of the results so far; the numbers are shown beside it. */
export function progressBar() {
  const parts = new Map(BAR.map((name) => [name, h(`span.part.part-${name}`)]));
  const bar = h('div.progress', { role: 'progressbar', 'aria-valuemin': '0' }, [...parts.values()]);
  bar.update = (operation) => {
    for (const [name, part] of parts) {
      part.style.flexGrow = String(operation.counts[name] || 0);
      part.hidden = !operation.counts[name];
    }
    setAttr(bar, 'aria-valuemax', operation.total);
    setAttr(bar, 'aria-valuenow', endedCount(operation));
    setAttr(bar, 'aria-label', t('operations.progress', { some: endedCount(operation), all: operation.total }));
  };
  return bar;
}

/** "36 done · 2 failed", each with its glyph. */
export function countsText(operation) {
  const named = [...RESULTS].reverse().filter((name) => operation.counts[name]);
  return named.map((name) => `${RESULT_GLYPHS[name]} ${formatNumber(operation.counts[name])} ${t(`result.${name}`)}`).join(' · ');
}

/** Failed and skipped workers by cause. `.update(causes)`. Without `links` in a dialog, so that it is not left by them. */
export function causeList({ links = true } = {}) {
  const list = h('ul.cause-list');
  list.update = (causes) => keyed(list, causes, (one) => `${one.result || one.action} ${one.cause || one.message}`, (one) => causeItem(one, links));
  return list;
}

function causeItem(entry, links) {
  const result = entry.result || (entry.action === 'pending' ? 'pending' : 'skipped');
  const count = h('span.cause-count');
  const text = h('span.cause-text', {}, causeText(entry));
  const examples = h('span.cause-examples');
  const item = h(`li.result-${result}`, {}, h('span.glyph', { 'aria-hidden': 'true' }, resultGlyph(result)), count, h('span.cause-what', {}, text, examples));
  item.update = (next) => {
    setText(count, `${formatNumber(next.count)} ${t(`result.${result}`)}`);
    const names = next.examples.map((id) => (links ? h('a', { href: link('worker', id) }, id) : h('span', {}, id)));
    const more = next.count > names.length ? t('operations.and_more', { n: next.count - names.length }) : '';
    const shown = `${next.examples.join(' ')} ${more}`;
    if (examples.dataset.shown !== shown) {
      examples.dataset.shown = shown;
      examples.replaceChildren(...names.flatMap((name) => [name, ' ']), more);
    }
  };
  return item;
}
