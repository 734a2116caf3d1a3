/**
 * The fields of workers, hosts and events, as listed by the manager (GET /api/fields, also in the page's own files): the fields of the live lists, and the available
 * columns. Requested once, before the first page.
 */

import { get } from './api.js';
import { currentLanguage, versioned } from './i18n.js';

const NONE = { rows: [], measures: [], columns: new Map() };
let lists = {};

export async function loadFields() {
  const declared = await get(versioned('/static/fields.json'), { cache: 'default' });
  lists = Object.fromEntries(Object.entries(declared).map(([name, fields]) => [name, listOf(fields)]));
}

/** {rows, measures: names in the live list, columns: fields that a page may show, by the key of their column}. */
export function fieldsOf(name) {
  return lists[name] || NONE;
}

export function labelOf(field) {
  return currentLanguage() === 'zh-CN' ? field.label.zh : field.label.en;
}

/** The value of a field in a row of the list; undefined or null: none. */
export function valueOf(row, field) {
  if (!field.part_of) return row[field.name];
  return row[field.part_of] ? row[field.part_of][field.name] : null;
}

function listOf(fields) {
  const names = (live) => fields.filter((field) => field.live === live).map((field) => field.name);
  const columns = fields.filter((field) => field.column);
  return { rows: names('row'), measures: names('measure'), columns: new Map(columns.map((field) => [field.column.key, field])) };
}
