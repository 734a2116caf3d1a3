/** Tokens: scope, last use and its address of each; creation and revocation. A new token is shown once. */

import { get, post, request } from '../../api.js';
import { asked, listTable } from '../../asked.js';
import { commandBox, confirmAction, emptyBox, errorBox, notify, notifyError } from '../../dialogs.js';
import { fill, h, show } from '../../dom.js';
import { formatAge, formatDuration, formatMoment } from '../../format.js';
import { t } from '../../i18n.js';
import { actorName } from '../../reasons.js';
import { mayAct } from '../../rights.js';
import { Table, fixedCell, textCell } from '../../table.js';

const LIVES_S = [24 * 3600, 30 * 24 * 3600, 365 * 24 * 3600];
const SCOPES = ['viewer', 'enroll', 'metrics', 'operator'];
const WIDTHS = 'minmax(130px, 1.4fr) minmax(90px, .8fr) minmax(130px, 1.2fr) minmax(130px, 1.2fr) minmax(130px, 1.2fr) 92px';

export function tokensSection({ session }) {
  if (!mayAct()) return { node: emptyBox(t('tokens.operators_only')) };
  const list = asked(() => get('/api/tokens'), ({ tokens }) => drawTokens(tokens, () => list.load()));
  const node = h(
    'div.admin-sections',
    {},
    h('section.panel', { 'aria-labelledby': 'tokens-title' }, h('h2', { id: 'tokens-title' }, t('admin.tokens')), list.node),
    h('section.panel', { 'aria-labelledby': 'token-new' }, h('h2', { id: 'token-new' }, t('tokens.new')), tokenForm(session, () => list.load())),
  );
  return { node, started: list.load, stop: list.stop };
}

function drawTokens(tokens, reload) {
  if (!tokens.length) return h('p', {}, t('tokens.none'));
  const columns = [
    { name: 'name', label: t('tokens.name'), make: textCell((one) => one.name || one.token_id, { selector: 'strong', title: (one) => one.token_id }) },
    { name: 'scope', label: t('tokens.scope'), make: textCell((one) => one.scope) },
    { name: 'used', label: t('tokens.used'), make: textCell((one) => (one.last_used_at ? t('tokens.used_from', { d: formatAge(one.last_used_at), address: one.last_used_from || t('none') }) : t('never'))) },
    { name: 'expires', label: t('tokens.expires'), make: textCell((one) => [one.expires_at ? formatMoment(one.expires_at) : t('never'), one.uses_left === null ? '' : t('tokens.uses_left', { n: one.uses_left })].filter(Boolean).join(t('worker.joint'))) },
    { name: 'made', label: t('tokens.made'), make: textCell((one) => t('tokens.made_by', { d: formatAge(one.created_at), actor: actorName(one.created_by) })) },
    { name: 'revoke', label: t('tokens.revoke'), make: (one) => fixedCell(h('button.button.small', { type: 'button', 'aria-label': t('tokens.revoke_of', { name: one.name || one.token_id }), on: { click: () => revoke(one, reload) } }, t('tokens.revoke'))) },
  ];
  return listTable(new Table({ label: t('admin.tokens'), kind: 'tokens-table', keyOf: (one) => one.token_id, columns }), WIDTHS, tokens);
}

async function revoke(token, reload) {
  const name = token.name || token.token_id;
  const sure = await confirmAction({ title: t('tokens.revoke_title', { name }), detail: [t('tokens.revoke_detail')], action: t('tokens.revoke'), danger: true });
  if (!sure) return;
  try {
    await request('DELETE', `/api/tokens/${encodeURIComponent(token.token_id)}`);
    notify(t('tokens.revoked', { name }));
  } catch (error) {
    notifyError(error, t('tokens.revoke_failed', { name }));
  }
  reload();
}

/** The form for a new token. A session cannot create tokens that permit declaring commands, because it can be stolen; for these, the command is shown. */
function tokenForm(session, onMade) {
  const scope = h('select.input', { id: 'token-scope' }, SCOPES.map((one) => h('option', { value: one }, t(`tokens.scope_${one}`))));
  const name = h('input.input', { id: 'token-name', type: 'text', maxlength: '64', autocomplete: 'off' });
  const life = h('select.input', { id: 'token-life' }, LIVES_S.map((s) => h('option', { value: String(s), selected: s === LIVES_S[1] }, formatDuration(s, 1))), h('option', { value: '' }, t('never')));
  const uses = h('input.input', { id: 'token-uses', type: 'number', min: '1', max: '1000000', value: '1', inputmode: 'numeric' });
  const field = (input, label) => h('div.field', {}, h('label', { for: input.id }, label), input);
  const usesField = field(uses, t('tokens.uses'));
  const go = h('button.button.primary', { type: 'submit' }, t('tokens.make'));
  const terminal = h('div', { hidden: true }, h('p.muted', {}, t('tokens.by_terminal')), commandBox('invoke token.create --name browser'));
  const result = h('div', { role: 'status' });
  const form = h('form.admin-form', { 'aria-label': t('tokens.new') }, field(scope, t('tokens.scope')), field(name, t('tokens.name')), field(life, t('tokens.life')), usesField, go, terminal, result);
  const choose = () => {
    const here = scope.value !== 'operator' || session.via !== 'session';
    show(usesField, scope.value === 'enroll');
    show(terminal, !here);
    go.disabled = !here;
  };
  scope.addEventListener('change', choose);
  choose();
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    try {
      const wanted = { scope: scope.value, name: name.value.trim(), expires_in_s: Number(life.value) || null, uses: scope.value === 'enroll' ? Number(uses.value) || null : null };
      const made = await post('/api/tokens', wanted);
      fill(result, h('p.strong', {}, t('tokens.made_once', { name: made.name || made.token_id })), commandBox(made.token));
      name.value = '';
      onMade();
    } catch (error) {
      fill(result, errorBox(error));
    }
  });
  return form;
}
