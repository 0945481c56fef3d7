// One transaction: what it is, what happened to it, what is in it, and what to do about it.

import { h, put, badge, button, keepFocus, say, text, time } from '../dom.js';
import { get, path, post } from '../api.js';
import { confirmOne, problemBox } from '../dialog.js';
import { follow, heading, load, viewerNote } from '../parts.js';
import { messages } from './messages.js';
import { bytes, count, counted, moment, span, words } from '../text.js';

const FINAL = ['delivered', 'rolled_back'];
const REFRESH = 2;

export function transaction(main, { id, signal, who }) {
  const url = path`/api/transactions/${id}`;
  const [facts, outcome, timeline, title] = [h('div'), h('div'), h('div'), h('span')];
  const actions = h('div', { class: 'buttons' });
  const content = h('div', { class: 'stack' });
  const inside = messages(url, signal);
  let now = null;

  const draw = (answer) => {
    const changed = now === null || now.etag !== answer.etag || JSON.stringify(now.body) !== JSON.stringify(answer.body);
    if (!changed) return;
    const first = now === null;
    if (!first && now.body.state !== answer.body.state) say(`It is ${words(answer.body.state)} now`);
    now = answer;
    put(title, text(now.body.name ?? 'Transaction'), ' ', badge(now.body.state));
    put(facts, factsOf(now.body));
    put(timeline, timelineOf(now.body));
    keepFocus(() => put(actions, who.role === 'operator' ? buttonsOf() : now.body.state === 'in_doubt' || now.body.state === 'open' ? viewerNote() : null));
    if (first) {
      put(content, actions, outcome, h('div', { class: 'two' }, h('section', { class: 'panel' }, h('h2', {}, 'Facts'), facts),
        h('section', { class: 'panel' }, h('h2', {}, 'Timeline'), timeline)), inside.element);
      inside.load();
    }
  };
  const refresh = async () => draw(await get(url, { signal }));
  const reload = () => load(content, signal, () => get(url, { signal }), (answer) => {
    now = null;
    draw(answer);
  });

  const decide = (verb, word, danger, what) => confirmOne({
    title: `${verb} this transaction`, verb: `${verb} ${counted(now.body.messages, 'message')}`, danger, what: [h('p', {}, nameOf(now.body)), h('p', {}, what)],
    act: (reason) => post(`${url}/${word}`, { reason }, { etag: now.etag }),
    done: () => {
      say(`Done: ${verb}`);
      refresh().catch(reload);
    },
    changed: reload,
  });
  const check = async () => {
    put(outcome);
    try {
      await post(`${url}/check`, {});
      put(outcome, h('p', { class: 'note', role: 'status' }, 'Its checker is asked now. An answer will stand in the timeline; whether it answers at all, under ', h('a', { href: '#/checkers' }, 'Checkers'), '.'));
      await refresh();
    } catch (error) {
      put(outcome, problemBox(error));
    }
  };
  const buttonsOf = () => {
    const { state, checker } = now.body;
    if (state === 'dead_lettered') {
      return h('p', { class: 'note' }, 'Some of its messages could not be delivered: retry or discard them under ', h('a', { href: '#/dead-letters' }, 'Dead letters'), '.');
    }
    if (state !== 'in_doubt' && state !== 'open') return null;
    return [
      button('Commit…', () => decide('Commit', 'commit', false, 'All its messages go to RabbitMQ. This can’t be taken back.'), { class: 'primary', data: { key: 'commit' } }),
      button('Roll back…', () => decide('Roll back', 'rollback', true, 'None of its messages is ever delivered. This can’t be taken back.'), { class: 'danger', data: { key: 'rollback' } }),
      state === 'in_doubt' && checker !== null && button('Check now', check, { data: { key: 'check' } }),
    ];
  };

  put(main, h('p', { class: 'crumb' }, h('a', { href: '#/transactions' }, 'Transactions')), heading(title), content);
  put(title, 'Transaction');
  reload();
  follow(signal, REFRESH, async () => {
    if (now && !FINAL.includes(now.body.state)) await refresh();
  });
  return `Transaction ${id}`;
}

const nameOf = ({ name, id }) => (name === null ? h('code', {}, id) : [h('b', {}, text(name)), ' ', h('code', { class: 'quiet' }, id)]);

function factsOf(it) {
  const pairs = [
    ['Id', h('code', {}, it.id)],
    ['Name', it.name === null ? h('span', { class: 'quiet' }, 'none: a plain transaction') : text(it.name)],
    ['Virtual host', text(it.vhost)],
    ['User', text(it.user)],
    ['Messages', `${count(it.messages)}, ${bytes(it.bytes)}`],
    ['Created', time(it.created_at)],
    it.parked_at && ['Parked', time(it.parked_at)],
    it.decided_at && ['Decided', time(it.decided_at)],
    it.decided_by && ['Decided by', text(it.decided_by)],
    ['Checker', it.checker === null ? h('span', { class: 'quiet' }, 'none: a person decides') : h('a', { href: '#/checkers' }, text(it.checker))],
    it.checker !== null && ['Answers', count(it.checks_answered)],
    it.next_check_at && ['Next check', ['not before ', time(it.next_check_at)]],
  ].filter(Boolean);
  return h('dl', { class: 'facts' }, pairs.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}

const EVENTS = {
  parked: 'Parked: its messages are kept, and invisible', in_doubt: 'In doubt: nobody has decided', check: 'Checked',
  committed: 'Committed', rolled_back: 'Rolled back', delivered: 'Delivered: every message was forwarded, and RabbitMQ has confirmed it',
  dead_lettered: 'Dead-lettered: some messages could not be delivered', dead_letter: 'Dead letter: a message could not be delivered',
  retry: 'Retry', discard: 'Discarded', redelivered: 'Redelivered',
};

function timelineOf(it) {
  const events = it.history ?? [];
  const starts = events.some(({ event }) => event === 'parked') ? [] : [{ at: it.created_at, event: 'created', actor: null, reason: null }];
  // A plain transaction has no history: its own columns tell the rest.
  const decided = it.decided_at && !events.some(({ event }) => event === 'committed' || event === 'rolled_back')
    ? [{ at: it.decided_at, event: it.state === 'rolled_back' ? 'rolled_back' : 'committed', actor: it.decided_by, reason: null }] : [];
  const all = [...starts, ...decided, ...events].sort((a, b) => Date.parse(a.at) - Date.parse(b.at));
  const entry = (event, index) => h('li', { class: `event is-${event.event.replaceAll('_', '-')}` },
    h('div', {}, h('b', {}, EVENTS[event.event] ?? capital(words(event.event))), event.actor && [' by ', text(event.actor)]),
    event.reason && h('div', { class: 'why' }, text(event.reason), event.event === 'check' && event.reason.startsWith('no answer') && h('span', { class: 'quiet' }, ' (the same again is not listed)')),
    h('div', { class: 'quiet' }, h('time', { datetime: event.at }, moment(event.at, { millis: true })), index > 0 && later(all[index - 1], event)));
  return h('ol', { class: 'timeline' }, all.map(entry), pending(it));
}

const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);

function later(before, event) {
  const passed = (Date.parse(event.at) - Date.parse(before.at)) / 1000;
  return `, ${passed < 1 ? `${Math.round(passed * 1000)} ms` : span(passed)} later`;
}

/** What comes next, if anything does. */
function pending(it) {
  const entry = (...what) => h('li', { class: 'event is-pending' }, what);
  if (it.next_check_at) return entry(h('b', {}, 'Next check'), ' not before ', time(it.next_check_at));
  if (it.state === 'in_doubt') return entry(h('b', {}, 'Waits for a person'));
  if (it.state === 'open') return entry(h('b', {}, 'Its channel lives and has not decided'));
  if (it.state === 'committed') return entry(h('b', {}, 'On its way to RabbitMQ'));
  return null;
}
