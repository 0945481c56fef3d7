// Transactions, filtered, chosen, decided by the dozen.

import { h, put, badge, text, time } from '../dom.js';
import { path, post, Problem } from '../api.js';
import { List, scopeOf } from '../list.js';
import { confirmMany } from '../dialog.js';
import { heading, empty, viewerNote } from '../parts.js';
import { bytes, count, counted } from '../text.js';

const FIELDS = [
  { name: 'state', label: 'State', options: [['', 'any'], ['open', 'open'], ['in_doubt', 'in doubt'], ['committed', 'committed'],
    ['delivered', 'delivered'], ['rolled_back', 'rolled back'], ['dead_lettered', 'dead lettered']] },
  { name: 'vhost', label: 'Virtual host' },
  { name: 'user', label: 'User' },
  { name: 'name', label: 'Name', hint: 'order-*' },
  { name: 'exchange', label: 'Exchange' },
  { name: 'min_age', label: 'Older than', hint: '30s, 5m, 2h' },
];

const UNDECIDED = ['in_doubt', 'open'];

const ACTIONS = [
  { value: 'commit', label: 'Commit: all their messages go to RabbitMQ', verb: 'Commit', explain: 'Their messages go to RabbitMQ. This can’t be taken back.' },
  { value: 'rollback', label: 'Roll back: none of their messages is ever delivered', verb: 'Roll back', danger: true, explain: 'None of their messages is ever delivered. This can’t be taken back.' },
  { value: 'check', label: 'Check now: their checkers are asked', verb: 'Check', explain: 'Their checkers are asked at once. The answers decide.' },
];

export function transactions(main, context) {
  const operator = context.who.role === 'operator';
  const list = new List({
    route: 'transactions', url: '/api/transactions', noun: 'transaction', label: 'Filter transactions', fields: FIELDS,
    columns: COLUMNS, title: titleOf, none: nothing,
    actions: operator ? ACTIONS.map((action) => ({ label: action.verb, danger: action.danger, open: (rows) => chosen(action, rows, () => list.load()) })) : [],
    whole: { label: 'Decide about all that match…', may: ({ state }) => !state || UNDECIDED.includes(state), open: (filters) => matching(filters, () => list.load()) },
  }, context);
  put(main, heading('Transactions', h('button', { type: 'button', on: { click: () => list.load() } }, 'Refresh')), !operator && viewerNote(), list.element);
  list.load();
  return 'Transactions';
}

const titleOf = ({ name, id }) => name ?? id;

const COLUMNS = [
  { head: 'Transaction', kind: 'row', cell: (item) => h('a', { href: `#/transactions/${item.id}` }, item.name === null ? h('code', {}, item.id) : text(item.name)) },
  { head: 'State', cell: ({ state }) => badge(state) },
  { head: 'Virtual host', cell: ({ vhost }) => text(vhost) },
  { head: 'User', cell: ({ user }) => text(user) },
  { head: 'Messages', kind: 'number', cell: ({ messages }) => count(messages) },
  { head: 'Size', kind: 'number', cell: ({ bytes: size }) => bytes(size) },
  { head: 'Created', cell: (item) => time(item.created_at, { short: true }) },
  { head: 'Checker', cell: (item) => (item.checker === null ? h('span', { class: 'quiet' }, 'none') : [text(item.checker), ' ', checks(item)]) },
  { head: 'Next', cell: next },
];

const checks = ({ checks_answered: answered }) => Number(answered) > 0 && h('span', { class: 'quiet' }, `(${counted(answered, 'answer')})`);

function next(item) {
  if (item.next_check_at && Date.parse(item.next_check_at) < Date.now()) return 'check is due';
  if (item.next_check_at) return ['check ', time(item.next_check_at, { short: true })];
  if (item.state === 'in_doubt') return h('b', { class: 'warning' }, 'a person decides');
  return item.decided_by ? ['by ', text(item.decided_by)] : '';
}

const nothing = () => empty('There is no transaction.', h('p', { class: 'quiet' },
  'Transactions stand here from the moment their messages are kept until they are delivered; those with a name stay for ',
  h('code', {}, 'transaction.retention'), '.'));

function chosen(action, rows, done) {
  confirmMany({
    title: `${action.verb} ${counted(rows.length, 'transaction')}`, noun: 'transaction', done,
    // A question about one needs no reason.
    actions: [action.value === 'check' ? { ...action, reason: false } : action],
    scope: [h('p', {}, 'You have chosen:'), h('ul', { class: 'chosen-rows' }, rows.map((row) => h('li', {}, text(titleOf(row)))))],
    count: async () => ({ matched: String(rows.length), at_least: false }),
    steps: (_, reason) => oneByOne(rows, (row) => post(path`/api/transactions/${row.id}/${action.value}`, reason === undefined ? {} : { reason })),
    link: (id) => `#/transactions/${id}`,
  });
}

/** Does it row after row. What somebody else has decided is a failure to be told, not an end. */
export async function* oneByOne(rows, act) {
  for (const row of rows) {
    try {
      await act(row);
      yield { done: 1, skipped: 0, failed: [] };
    } catch (error) {
      if (!(error instanceof Problem) || [0, 401, 403, 503].includes(error.status)) throw error;
      yield { done: 0, skipped: 0, failed: [{ id: row.id, detail: error.message }] };
    }
  }
}

function matching(filters, done) {
  confirmMany({
    title: 'Decide about all that match', noun: 'transaction', actions: ACTIONS, done,
    scope: scopeOf({ state: 'in_doubt', ...filters }, FIELDS, 'transaction'),
    count: (action) => post('/api/transactions/bulk', { action: action.value, filter: filters, dry_run: true }),
    steps: (action, reason) => batches('/api/transactions/bulk', { action: action.value, filter: filters, reason }),
    link: (id) => `#/transactions/${id}`,
  });
}

/** Batch after batch until the server has no more. */
export async function* batches(url, request) {
  let cursor = null;
  do {
    const step = await post(url, { ...request, dry_run: false, cursor });
    yield step;
    cursor = step.next_cursor;
  } while (cursor !== null);
}
