// Who is asked about transactions in doubt, and how well they answer.

import { badge, h, keepFocus, put, text, time } from '../dom.js';
import { get } from '../api.js';
import { empty, follow, heading, load } from '../parts.js';
import { bare, count, counted, seconds, words } from '../text.js';

const REFRESH = 2;

export function checkers(main, { signal }) {
  const place = h('div');
  const fetch = () => get('/api/checkers', { signal });
  const show = ({ body }) => keepFocus(() => put(place, body.items.length === 0 ? nothing() : h('div', { class: 'checkers' }, body.items.map(checkerOf))));
  put(main, heading('Checkers'), place);
  load(place, signal, fetch, show);
  follow(signal, REFRESH, async () => show(await fetch()));
  return 'Checkers';
}

const nothing = () => empty('No checker is configured.', h('p', { class: 'quiet' }, 'Transactions in doubt wait for a person. A ',
  h('code', {}, '[[checker]]'), ' in the configuration asks the producer instead.'));

const WORDS = ['commit', 'rollback', 'unknown', 'ongoing', 'no_answer'];

function checkerOf(it) {
  const [asked, answered] = [WORDS, WORDS.slice(0, -1)].map((some) => some.reduce((sum, word) => sum + BigInt(it.answers[word] ?? 0), 0n));
  const share = asked > 0n ? Number((answered * 1000n) / asked) / 10 : null;
  const tone = it.circuit === 'closed' ? 'good' : 'bad';
  return h('article', { class: 'panel' },
    h('h2', {}, text(it.name), ' ', badge(it.kind, 'quiet'), ' ', badge(it.circuit === 'closed' ? 'asked' : `breaker ${it.circuit}`, tone)),
    it.circuit !== 'closed' && h('p', { class: 'note' }, 'It gave no answer five times in a row, so it is tried every half minute only, and what it should decide ',
      h('a', { href: '#/transactions?state=in_doubt', data: { key: `silent-${it.name}` } }, 'stays in doubt'),
      '. Start it, or mend its address. A transaction’s “Check now” tries it at once.'),
    h('dl', { class: 'facts' },
      h('dt', {}, { http: 'URL', amqp: 'Queue' }[it.kind] ?? 'Database'), h('dd', {}, text(it.target), it.vhost && [h('span', { class: 'quiet' }, ' in virtual host '), text(it.vhost)]),
      h('dt', {}, 'Knows about'), h('dd', {}, matchOf(it.match)),
      h('dt', {}, 'Answered'), h('dd', {}, share === null ? h('span', { class: 'quiet' }, 'never asked since the start') : [
        h('meter', { min: 0, max: 100, low: 50, high: 90, optimum: 100, value: share, 'aria-label': 'Share of answers' }), ` ${share} % of ${count(asked)}`]),
      h('dt', {}, 'Last'), h('dd', {}, it.last === null ? h('span', { class: 'quiet' }, 'none yet') : lastOf(it.last)),
      h('dt', {}, 'Given up'), h('dd', {}, Number(it.exhausted) > 0
        ? h('a', { class: 'warning', href: '#/transactions?state=in_doubt', data: { key: `exhausted-${it.name}` } }, `${counted(it.exhausted, 'transaction')} since the start: a person decides`)
        : h('span', { class: 'quiet' }, 'none'))),
    h('ul', { class: 'answers' }, WORDS.map((word) => h('li', {}, h('b', {}, count(it.answers[word] ?? 0)), ' ', words(word)))));
}

const lastOf = ({ result, reason, seconds: taken, at }) => [words(result), ` in ${seconds(taken)}, `, time(at, { short: true }), reason && h('div', { class: 'quiet' }, text(bare(reason)))];

function matchOf(match) {
  const given = Object.entries(match).filter(([, value]) => value !== null && value !== '');
  if (given.length === 0) return h('span', { class: 'quiet' }, 'everything');
  return given.map(([part, value], index) => [index > 0 && ', ', `${part} `, h('code', {}, text(value))]);
}
