/** The HTTP interface, generated from its description (/api/openapi.json): every route, its access right, parameters and responses. */

import { get } from '../api.js';
import { emptyBox, errorBox } from '../dialogs.js';
import { fill, h, setText, show } from '../dom.js';
import { currentLanguage, t } from '../i18n.js';
import { readRoute, replaceQuery } from '../router.js';
import { pageHead } from './parts.js';

const PREFIX = '#/components/schemas/';
const DEPTH = 3; // depth of nested types that are expanded; deeper ones are only named

export function apiPage() {
  const input = h('input.input.search', { type: 'search', 'aria-label': t('api.filter'), placeholder: t('api.filter'), value: readRoute().query.get('q') || '', on: { input: () => filter() } });
  const count = h('span.count', { role: 'status' });
  const list = h('div.api-list');
  const none = emptyBox(t('api.none'));
  show(none, false);
  const intro = h('p.api-intro', {}, t('api.intro'), ' ', h('a', { href: '/api/openapi.json', target: '_blank', rel: 'noopener' }, '/api/openapi.json'));
  const node = h('div.page', {}, pageHead(t('nav.api'), count, h('span.spring'), input), intro, none, list);
  let routes = [];

  async function load() {
    try {
      const spec = await get('/api/openapi.json');
      routes = routesOf(spec);
      fill(list, sections(routes));
      filter();
    } catch (error) {
      fill(list, errorBox(error, load));
    }
  }

  function filter() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const route of routes) show(route.node, words.every((word) => route.text.includes(word)));
    for (const section of list.querySelectorAll('section')) show(section, Boolean(section.querySelector('details:not([hidden])')));
    const shown = routes.filter((route) => !route.node.hidden).length;
    show(none, routes.length > 0 && shown === 0);
    setText(count, t('api.count', { n: shown }));
    replaceQuery(input.value ? { q: input.value } : {});
  }

  load();
  return { node, title: t('nav.api'), topics: [], update() {} };
}

function routesOf(spec) {
  const schemas = spec.components.schemas;
  const found = [];
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const says = currentLanguage() === 'zh-CN' ? operation['x-summary-zh'] || operation.summary : operation.summary;
      const route = { method: method.toUpperCase(), path, says, operation, tag: operation.tags[0] };
      route.text = `${route.method} ${path} ${operation.summary} ${operation['x-summary-zh']}`.toLowerCase();
      route.node = routeBox(route, schemas, spec.components.responses);
      found.push(route);
    }
  }
  return found;
}

function sections(routes) {
  const tags = [...new Set(routes.map((route) => route.tag))];
  return tags.map((tag) => h('section.panel.api-section', { 'aria-labelledby': `api-${tag}` }, h('h2', { id: `api-${tag}` }, t(`api.tag_${tag}`)), routes.filter((route) => route.tag === tag).map((route) => route.node)));
}

/** The content is built when the box is opened, because there are many routes and few are opened. */
function routeBox(route, schemas, responses) {
  const body = h('div.api-body');
  const box = h('details.api-route', {}, h('summary', {}, h(`span.api-method.is-${route.method.toLowerCase()}`, {}, route.method), ' ', h('code.api-path', {}, route.path), ' ', h('span.api-says', {}, route.says)), body);
  box.addEventListener('toggle', () => box.open && !body.firstChild && fill(body, inside(route.operation, schemas, responses)));
  return box;
}

function inside(operation, schemas, responses) {
  const caller = operation['x-who'].replaceAll(' ', '_');
  const parts = [h('p', {}, t('api.who', { who: t(`api.who_${caller}`) }))];
  if (operation.description) parts.push(h('p', { lang: 'en' }, operation.description.replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')));
  const parameters = operation.parameters || [];
  if (parameters.length) {
    parts.push(h('h3', {}, t('api.parameters')));
    parts.push(fieldList(parameters.map((one) => ({ name: one.name, type: typeText(one.schema), says: one.description, required: one.required }))));
  }
  for (const [media, content] of Object.entries((operation.requestBody || {}).content || {})) {
    parts.push(h('h3', {}, t('api.body'), ' ', h('code', {}, media)), schemaBox(content.schema, schemas, DEPTH));
  }
  parts.push(h('h3', {}, t('api.answers')));
  for (const [status, answer] of Object.entries(operation.responses)) parts.push(answerBox(status, answer, schemas, responses));
  return parts;
}

function answerBox(status, answer, schemas, responses) {
  const whole = answer.$ref ? responses[answer.$ref.split('/').pop()] : answer;
  const good = Number(status) < 400;
  const medias = Object.keys(whole.content || {}).join(', ');
  const head = h('p.api-answer', {}, h('strong', {}, status), ' ', good ? h('code', {}, medias) : h('span.muted', { lang: 'en' }, whole.description));
  const json = good && whole.content && whole.content['application/json'];
  return json ? [head, schemaBox(json.schema, schemas, DEPTH)] : head;
}

/** The fields of a type, and of the types in it. */
function schemaBox(schema, schemas, depth) {
  const name = nameOf(schema);
  const found = name ? schemas[name] : schema;
  if (!found || !found.properties) return name ? h('code', {}, name) : null;
  const fields = Object.entries(found.properties).map(([field, type]) => ({ name: field, type: typeText(type), says: type.description, required: (found.required || []).includes(field) }));
  const inner = depth > 1 ? [...new Set(Object.values(found.properties).flatMap(namesIn))].filter((one) => one !== name && schemas[one] && schemas[one].properties) : [];
  return h('div.api-type', {}, name && h('p', {}, h('code', {}, name)), fieldList(fields), inner.map((one) => h('details.api-inner', {}, h('summary', {}, h('code', {}, one)), schemaBox({ $ref: PREFIX + one }, schemas, depth - 1))));
}

function fieldList(fields) {
  return h('ul.api-fields', {}, fields.map((one) => h('li', {}, h('code', {}, one.name), ' ', h('span.muted', {}, one.type, one.required ? [' · ', t('api.required')] : null), one.says ? h('span.api-note', { lang: 'en' }, ' ', one.says) : null)));
}

function nameOf(schema) {
  return schema && schema.$ref ? schema.$ref.slice(PREFIX.length) : '';
}

function namesIn(schema) {
  const name = nameOf(schema);
  if (name) return [name];
  const inner = [...(schema.anyOf || []), schema.items, typeof schema.additionalProperties === 'object' ? schema.additionalProperties : null];
  return inner.filter(Boolean).flatMap(namesIn);
}

/** "integer", "[Worker]", "string | null", "start | stop": a short form of a type. */
function typeText(schema) {
  if (!schema) return '';
  const name = nameOf(schema);
  if (name) return name;
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(' | ');
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.anyOf) return [...new Set(schema.anyOf.map(typeText))].join(' | ');
  if (schema.type === 'array') return `[${typeText(schema.items || {}) || '…'}]`;
  if (schema.type === 'object' && typeof schema.additionalProperties === 'object') return `{…: ${typeText(schema.additionalProperties)}}`;
  const bounds = schema.minimum !== undefined && schema.maximum !== undefined ? ` ${schema.minimum}–${schema.maximum}` : '';
  return `${schema.type || '…'}${bounds}`;
}
