/**
 * The lines of the inventory that declare a worker, the lines for another value, and the command that deploys
 * them. Nothing is sent: if a page could declare commands, a stolen session could run commands.
 */

import { copyText } from '../clipboard.js';
import { commands } from '../commands.js';
import { fill, h, setText, show } from '../dom.js';
import { t } from '../i18n.js';
import { icon } from '../icons.js';
import { yamlEntry, yamlLines, yamlScalar } from '../yaml.js';
import { quoteWord } from './parts.js';

const ENV = 'env.'; // prefix of the name of a variable
const OTHER = 'env+';

/** `said`: the response of GET /api/workers/ID/spec. */
export function inventoryLines(id, said) {
  const { source } = said;
  const byHand = !source && !said.inventory;
  const title = h('h2', { id: 'change-title' }, t(byHand ? 'change.title_by_hand' : 'change.title'));
  const node = h('section.change', { 'aria-labelledby': 'change-title' }, title);
  if (!source) {
    node.append(h('p.muted', {}, t(byHand ? 'change.by_hand' : 'change.not_known')));
    return node;
  }
  const place = h('code', {}, `${source.file}:${source.line}`);
  const key = keySelect(said);
  const name = h('input.input', { id: 'change-name', type: 'text', autocomplete: 'off', spellcheck: 'false', value: 'NAME' });
  const value = h('textarea.input', { id: 'change-value', rows: '1', spellcheck: 'false', autocomplete: 'off' });
  const restart = h('input', { id: 'change-restart', type: 'checkbox' });
  const where = h('p.muted');
  const lines = copyBox();
  const command = copyBox();
  const nameField = h('div.field', {}, h('label', { for: 'change-name' }, t('change.name')), name);
  const [machine, hosts] = deployedFrom(said.inventory, source.file);
  node.append(
    h('p', {}, t('change.place', { machine }), ' ', place),
    source.workers > 1 ? h('p.hint', {}, t('change.shared', { n: source.workers })) : '',
    h(
      'div.change-fields',
      {},
      h('div.field', {}, h('label', { for: 'change-key' }, t('change.key')), key),
      h('div.field.change-value', {}, h('label', { for: 'change-value' }, t('change.value')), value),
      nameField,
    ),
    where,
    lines.node,
    h('label.check', { for: 'change-restart' }, restart, ' ', t('change.restart')),
    h('p.muted', {}, t('change.deploy', { machine })),
    command.node,
    h('p.hint', {}, t('change.check'), ' ', h('code', {}, '--check --diff')),
  );

  function choose() {
    const chosen = key.value;
    value.value = chosen.startsWith('env') ? '' : yamlLines({ ...said.defaults, ...said.declared }[chosen]).join('\n');
    value.rows = Math.min(8, Math.max(1, value.value.split('\n').length));
    draw();
  }

  function draw() {
    const chosen = key.value;
    show(nameField, chosen === OTHER);
    if (chosen.startsWith('env')) {
      const entry = `${yamlScalar(chosen === OTHER ? name.value : chosen.slice(ENV.length))}: ${asText(value.value)}`;
      const others = said.env_names.filter((one) => `${ENV}${one}` !== chosen);
      // a second `env:` in the entry would replace the first one completely
      lines.set(said.env_names.length ? `  ${entry}` : `env:\n  ${entry}`);
      setText(where, said.env_names.length ? t('change.below_env', { names: others.join(', ') || t('none') }) : t('change.in_entry', { worker: id }));
    } else {
      const typed = value.value.replace(/\s+$/, '').split('\n');
      lines.set(yamlEntry(chosen, typed, typed.length > 1 || /^- |^[\w.-]+: /.test(typed[0])).join('\n'));
      setText(where, t('change.in_entry', { worker: id }));
    }
    const words = [...hosts.flatMap((one) => ['--hosts', quoteWord(one)]), ...(source.host ? ['--limit', quoteWord(source.host)] : []), ...(restart.checked ? ['--restart-changed'] : [])];
    command.set(`${commands('invoke deploy')} ${words.join(' ')}`);
  }

  key.addEventListener('change', choose);
  for (const field of [name, value, restart]) field.addEventListener('input', draw);
  choose();
  return node;
}

/** The value of a variable, which is always text for the process. */
function asText(text) {
  return yamlScalar(text);
}

/** [machine, files] of "head:/home/ml/prod.yaml,/home/ml/more.yaml"; if the inventory has no name, the file of the entry. */
function deployedFrom(inventory, file) {
  const colon = inventory.indexOf(':');
  if (colon < 0) return [t('change.some_machine'), [file]];
  return [inventory.slice(0, colon), inventory.slice(colon + 1).split(',')];
}

function keySelect(said) {
  const option = (value, text) => h('option', { value }, text);
  const keys = (entries) => Object.keys(entries).filter((one) => one !== 'env').map((one) => option(one, one));
  const label = (text) => ({ label: text });
  return h(
    'select.input',
    { id: 'change-key' },
    h('optgroup', label('env'), said.env_names.map((one) => option(`${ENV}${one}`, `env: ${one}`)), option(OTHER, t('change.other_env'))),
    h('optgroup', label(t('change.declared')), keys(said.declared)),
    h('optgroup', label(t('change.defaults')), keys(said.defaults)),
  );
}

/** Lines with a button that copies them. `.set(text)`. */
function copyBox() {
  const code = h('code');
  const label = h('span', {}, t('copy'));
  const button = h('button.button', { type: 'button' }, icon('copy'), label);
  button.addEventListener('click', async () => setText(label, t((await copyText(code.textContent)) ? 'copied' : 'copy_failed')));
  const node = h('div.command-box.copy-lines', {}, h('pre', { tabindex: '0' }, code), button);
  return {
    node,
    set(text) {
      fill(code, text);
      setText(label, t('copy'));
    },
  };
}
