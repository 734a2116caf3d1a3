/** Values in the form of an inventory: YAML that is not parsed as another type, and without templates. Pure. */

const PLAIN = /^[A-Za-z_/.][\w./@%+=,;()-]*( [\w./@%+=,;()-]+)*$/;
const OTHERWISE = /^(?:true|false|yes|no|on|off|null|y|n|\.inf|\.nan|\.?\d[\d._e+-]*)$/i; // would be parsed as a type other than text
const UNPRINTABLE = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff]/g;
const TEMPLATE = /\{\{|\{%|\{#/;

/** One text, number or boolean; `!unsafe` prevents Ansible from rendering it as a template. */
export function yamlScalar(value) {
  if (value === null || value === undefined) return 'null';
  if (typeof value !== 'string') return String(value);
  if (PLAIN.test(value) && !OTHERWISE.test(value)) return value;
  const quoted = JSON.stringify(value).replace(UNPRINTABLE, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`);
  return TEMPLATE.test(value) ? `!unsafe ${quoted}` : quoted;
}

/** A value as lines, without its key. */
export function yamlLines(value) {
  if (Array.isArray(value)) {
    if (!value.length) return ['[]'];
    return value.flatMap((one) => {
      const [first, ...rest] = yamlLines(one);
      return [`- ${first}`, ...rest.map((line) => `  ${line}`)];
    });
  }
  if (value !== null && typeof value === 'object') {
    const entries = Object.entries(value);
    return entries.length ? entries.flatMap(([key, one]) => yamlEntry(yamlScalar(key), yamlLines(one), isBranch(one))) : ['{}'];
  }
  return [yamlScalar(value)];
}

/** `key: value`, or the key with the lines of its value below. */
export function yamlEntry(key, lines, below = lines.length > 1) {
  return below ? [`${key}:`, ...lines.map((line) => `  ${line}`)] : [`${key}: ${lines[0]}`];
}

function isBranch(value) {
  return value !== null && typeof value === 'object' && Object.keys(value).length > 0;
}
