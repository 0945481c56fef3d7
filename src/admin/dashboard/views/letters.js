// Dead letters: what RabbitMQ did not take.

import { h, put, text, time } from '../dom.js';
import { path, post } from '../api.js';
import { List, scopeOf } from '../list.js';
import { confirmMany } from '../dialog.js';
import { heading, empty, viewerNote } from '../parts.js';
import { count, counted } from '../text.js';
import { exchange } from './messages.js';
import { batches, oneByOne } from './transactions.js';

const FIELDS = [{ name: 'vhost', label: 'Virtual host' }, { name: 'exchange', label: 'Exchange' }];

const ACTIONS = [
  { value: 'retry', label: 'Retry: they are published again', verb: 'Retry', explain: 'They go behind what is committed by now. What RabbitMQ refuses again comes back here.' },
  { value: 'discard', label: 'Discard: they are deleted', verb: 'Discard', danger: true, explain: 'They are deleted and never delivered. This can’t be taken back.' },
];

export function letters(main, context) {
  const operator = context.who.role === 'operator';
  const list = new List({
    route: 'dead-letters', url: '/api/dead-letters', noun: 'dead letter', label: 'Filter dead letters', fields: FIELDS, columns: COLUMNS,
    title: ({ id }) => `dead letter ${id}`, none: nothing,
    actions: operator ? ACTIONS.map((action) => ({ label: action.verb, danger: action.danger, open: (rows) => chosen(action, rows, () => list.load()) })) : [],
    whole: { label: 'Decide about all that match…', may: () => true, open: (filters) => matching(filters, () => list.load()) },
  }, context);
  put(main, heading('Dead letters', h('button', { type: 'button', on: { click: () => list.load() } }, 'Refresh')), !operator && viewerNote(), list.element);
  list.load();
  return 'Dead letters';
}

const COLUMNS = [
  { head: 'Letter', kind: 'row', cell: ({ id }) => h('a', { href: `#/dead-letters/${id}` }, id) },
  { head: 'Exchange', cell: (letter) => exchange(letter.exchange) },
  { head: 'Routing key', cell: (letter) => text(letter.routing_key) },
  { head: 'Message-id', cell: (letter) => text(letter.message_id) },
  { head: 'Refused with', cell: (letter) => [h('b', {}, String(letter.reply_code)), ' ', text(letter.reply_text)] },
  { head: 'Attempts', kind: 'number', cell: ({ attempts }) => count(attempts) },
  { head: 'Since', cell: ({ since }) => time(since, { short: true }) },
];

const nothing = () => empty('There is no dead letter.', h('p', { class: 'quiet' },
  'A message comes here when it is committed and RabbitMQ can’t take it: its exchange was deleted, say.'));

function chosen(action, rows, done) {
  confirmMany({
    title: `${action.verb} ${counted(rows.length, 'dead letter')}`, noun: 'dead letter', actions: [action], done,
    scope: [h('p', {}, 'You have chosen:'), h('ul', { class: 'chosen-rows' }, rows.map((row) => h('li', {}, `${row.id}: `, exchange(row.exchange))))],
    count: async () => ({ matched: String(rows.length), at_least: false }),
    steps: (_, reason) => oneByOne(rows, (row) => post(path`/api/dead-letters/${row.id}/${action.value}`, { reason })),
    link: (id) => `#/dead-letters/${id}`,
  });
}

function matching(filters, done) {
  confirmMany({
    title: 'Decide about all that match', noun: 'dead letter', actions: ACTIONS, done,
    scope: scopeOf(filters, FIELDS, 'dead letter'),
    count: (action) => post('/api/dead-letters/bulk', { action: action.value, filter: filters, dry_run: true }),
    steps: (action, reason) => batches('/api/dead-letters/bulk', { action: action.value, filter: filters, reason }),
    link: (id) => `#/dead-letters/${id}`,
  });
}
