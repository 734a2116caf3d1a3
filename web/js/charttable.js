/** The numbers of charts as a table, newest first: a column for each line, a row for each time. */

import { fill, h } from './dom.js';
import { formatClock } from './format.js';
import { formatNumber, t } from './i18n.js';

export function chartTable() {
  const node = h('div.chart-table', { hidden: true, tabindex: '0', role: 'region', 'aria-label': t('chart.table') });

  /** `charts`: [{title, format, lines}]; `time`: whether their positions are times. */
  node.update = (charts, time = true) => {
    const columns = charts.flatMap(({ title, format, lines }) => lines.map((line) => ({ ...line, format, head: lines.length > 1 ? `${title} ${line.label}` : title })));
    const indexes = columns.map((column) => new Map(column.at.map((at, place) => [at, place])));
    const positions = [...new Set(columns.flatMap((column) => column.at))].sort((a, b) => b - a);
    const cell = (column, number, at) => {
      const place = indexes[number].get(at);
      const value = place === undefined ? null : column.values[place];
      return h('td', {}, value === null ? t('none') : column.format(value));
    };
    fill(
      node,
      h(
        'table',
        {},
        h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, t(time ? 'events.time' : 'chart.step')), columns.map((column) => h('th', { scope: 'col' }, column.head)))),
        h('tbody', {}, positions.map((at) => h('tr', {}, h('th', { scope: 'row' }, time ? formatClock(at) : formatNumber(at)), columns.map((column, number) => cell(column, number, at))))),
      ),
    );
  };
  return node;
}
