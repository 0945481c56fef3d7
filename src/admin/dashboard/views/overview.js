// One look: what needs a person, how much there is of everything, and how it went in the last minutes.

import { badge, h, isSelecting, keepFocus, put, text, time } from '../dom.js';
import { get } from '../api.js';
import { live } from '../live.js';
import { Chart } from '../chart.js';
import { load, heading } from '../parts.js';
import { bare, bytes, count, counted, moment, rate, seconds, span, words } from '../text.js';

const STORE_FULL = 0.8;
/** By then a checker that works has answered. */
const DOUBT_SECONDS_LONG = 3600;
const IN_DOUBT = '#/transactions?state=in_doubt';
/** Where it lies, and how large it may be. */
const STORE = '#/configuration?find=store';

export function overview(main, { signal }) {
  const [verdict, cards, parts] = [h('div'), h('div', { class: 'cards' }), h('div', { class: 'parts' }, PARTS.map(() => h('section', { class: 'panel' })))];
  const charts = makeCharts();
  put(main, heading('Overview'), verdict,
    h('section', { 'aria-label': 'Summary' }, cards),
    h('section', { class: 'charts', 'aria-label': 'The last five minutes' }, charts.map(({ element }) => element)), parts);
  const drawn = new Map();
  /** Draws what has changed, for a focus, or what is being copied, shall stay. */
  const draw = (place, value, make) => {
    const key = JSON.stringify(value);
    if (drawn.get(place) === key || isSelecting()) return;
    drawn.set(place, key);
    keepFocus(() => put(place, make(value)));
  };
  const show = (now) => {
    draw(verdict, { found: concerns(now), doubts: now.transactions.in_doubt }, verdictOf);
    showCards(cards, now);
    PARTS.forEach(([value, make], index) => draw(parts.children[index], value(now), make));
  };
  const showCharts = () => charts.forEach((chart) => chart.show(live.samples));
  live.addEventListener('overview', () => {
    show(live.overview);
    showCharts();
  }, { signal });
  if (live.overview) show(live.overview);
  else load(verdict, signal, () => get('/api/overview', { signal }), ({ body }) => live.overview || show(body));
  showCharts();
  return 'Overview';
}

function makeCharts() {
  const outcome = (name, label) => ({ name: `line-${name.replaceAll('_', '-')}`, label, value: (sample) => sample.outcomes?.[name] ?? null });
  return [
    new Chart('Transactions by outcome', [
      outcome('committed', 'committed'), outcome('rolled_back', 'rolled back'), outcome('refused', 'refused'), outcome('failed', 'failed'),
      outcome('in_doubt', 'in doubt'),
    ], rate),
    new Chart('Commit latency', [
      { name: 'line-p50', label: 'p50', value: (sample) => sample.commit_p50 },
      { name: 'line-p99', label: 'p99', value: (sample) => sample.commit_p99 },
    ], seconds),
    new Chart('Backlog', [
      { name: 'line-backlog', label: 'committed, not delivered', value: (sample) => Number(sample.backlog) },
      { name: 'line-in-doubt', label: 'in doubt', value: (sample) => Number(sample.in_doubt) },
    ], (value) => (value < 1 ? String(value) : count(Math.round(value)))),
  ];
}

const [MEND_DISK, MEND_BROKER] = ['Make room on its disk, or mend it', 'Mend RabbitMQ'].map((todo) => `${todo}: Halfway goes on by itself.`);
/** What it means that a part does not work, or not well, and what to do about it. */
const MEANINGS = {
  not_ready: {
    listener: { what: 'No client can connect' },
    store: { what: 'The store can’t write: nothing can be committed or decided', todo: MEND_DISK, href: STORE },
    upstream: { what: 'RabbitMQ can’t be reached: no client can connect', todo: MEND_BROKER },
  },
  degraded: {
    store: { what: 'The store failed to write a moment ago: commits may fail', todo: MEND_DISK, href: STORE },
    relay: { what: 'Committed messages wait in the store: RabbitMQ does not take them', todo: MEND_BROKER },
  },
};

/** What needs a person, the worst first: each with the way there. */
function concerns(now) {
  const [share, parts, oldest] = [storeShare(now.store), partsIn(now), doubtSeconds(now)];
  const of = (wanted) => parts.filter(({ status }) => status === wanted && !isStarting(now))
    .map(({ name, status, reason }) => ({ bad: status === 'not_ready', ...(MEANINGS[status][name] ?? { what: `${name} is ${words(status)}` }), why: reason }));
  return [
    isStarting(now) && { what: 'Halfway is starting' },
    ...of('not_ready'),
    now.store.blocked && { bad: true, what: 'The store is full: clients that publish are blocked', href: STORE },
    now.draining && { what: 'The proxy is shutting down' },
    ...now.silent_checkers.map(({ name, reason }) => ({
      what: 'A checker does not answer: its transactions stay in doubt', why: `${name}: ${bare(reason ?? '')}`, href: '#/checkers', key: `checker-${name}`,
    })),
    Number(now.dead_letters) > 0 && { bad: true, what: `${counted(now.dead_letters, 'dead letter')} to retry or discard`, href: '#/dead-letters' },
    oldest >= DOUBT_SECONDS_LONG && { what: `A transaction is in doubt for ${span(oldest)}`, href: IN_DOUBT },
    // Dead letters and a store past its size have lines of their own, with the way there.
    ...of('degraded').filter(({ what, why }) => what !== MEANINGS.degraded.store.what || isFailing(why)),
    !now.store.blocked && share >= STORE_FULL && { what: `The store is ${Math.round(share * 100)} % full`, href: STORE },
  ].filter(Boolean);
}

/** Its parts have not said yet how they are. */
const isStarting = ({ components }) => components.some(({ reason }) => reason === 'starting');

/** Whether this is about a disk, and not about dead letters or a size. */
const isFailing = (reason) => /write/.test(reason ?? '');

/** A drain is no part that could be mended. */
const partsIn = ({ components }) => components.filter(({ name }) => name !== 'draining');

const doubtSeconds = ({ in_doubt_oldest_since: oldest }) => (oldest ? (Date.now() - Date.parse(oldest)) / 1000 : 0);

/** Short enough for a card. */
const rough = (seconds) => span(seconds < 600 ? seconds : seconds - (seconds % 60));

const storeShare = ({ used_bytes: used, max_bytes: max }) => (Number(max) > 0 ? Number(used) / Number(max) : 0);

function verdictOf({ found, doubts }) {
  if (found.length === 0) {
    return h('p', { class: 'verdict is-good' }, h('b', {}, 'All is well. '), Number(doubts) === 0 ? 'Nothing waits for a person.'
      : [h('a', { href: IN_DOUBT, data: { key: 'doubts' } }, counted(doubts, 'transaction')), ' in doubt: a checker decides, or a person.']);
  }
  const line = ({ bad, what, why, todo, href, key = href }) => h('li', { class: bad ? 'is-bad' : 'is-warning' },
    href ? h('a', { href, data: { key } }, what) : h('b', {}, what), todo && ['. ', todo], why && h('div', { class: 'quiet' }, h('bdi', {}, why)));
  return h('div', { class: 'verdict is-concerned' }, h('h2', {}, 'Needs attention'), h('ul', {}, found.map(line)));
}

/** Each card keeps its element, so that the focus on it stays. */
function showCards(place, now) {
  const cards = cardsOf(now);
  if (place.childElementCount !== cards.length) {
    put(place, cards.map(({ href }) => h('a', { class: 'card', href }, h('span', { class: 'label' }), h('span', { class: 'figure' }), h('span', { class: 'quiet' }))));
  }
  cards.forEach(({ label, figure, below, tone }, index) => {
    const card = place.children[index];
    card.className = `card ${tone ? `is-${tone}` : ''}`;
    [label, figure, below].forEach((part, place) => put(card.children[place], part));
  });
}

function cardsOf(now) {
  const { transactions, store, rates } = now;
  const [share, oldest, parts] = [storeShare(store), now.in_doubt_oldest_since, partsIn(now)];
  const linked = now.relay.filter(({ state }) => state === 'connected').length;
  const down = isStarting(now) ? [] : parts.filter(({ name, status }) => ['upstream', 'relay'].includes(name) && status !== 'ready');
  const fails = parts.find(({ name, reason }) => name === 'store' && isFailing(reason))?.status;
  const old = doubtSeconds(now) >= DOUBT_SECONDS_LONG ? 'warning' : '';
  return [
    { label: 'In doubt', figure: count(transactions.in_doubt), below: `${count(transactions.open)} open`, href: IN_DOUBT, tone: old },
    { label: 'Oldest in doubt', figure: oldest ? rough(doubtSeconds(now)) : '–', below: oldest ? `since ${moment(oldest)}` : 'none is in doubt',
      href: IN_DOUBT, tone: old },
    { label: 'Undelivered', figure: count(transactions.committed), below: down.length > 0 ? 'committed, waiting' : 'committed, on the way', href: '#/transactions?state=committed' },
    { label: 'Dead letters', figure: count(now.dead_letters), below: Number(now.dead_letters) > 0 ? 'RabbitMQ did not take them' : 'none',
      href: '#/dead-letters', tone: Number(now.dead_letters) > 0 ? 'bad' : '' },
    { label: 'Rate in', figure: rate(rates.committed), below: `commits, ${bytes(rates.received_bytes)}/s`, href: '#/connections' },
    { label: 'Rate out', figure: rate(rates.forwarded), below: `messages, ${bytes(rates.sent_bytes)}/s`, href: '#/transactions?state=committed' },
    { label: 'Store', figure: bytes(store.used_bytes), below: Number(store.max_bytes) > 0 ? `${Math.round(share * 100)} % of ${bytes(store.max_bytes)}` : 'no limit is set',
      href: STORE, tone: store.blocked || fails === 'not_ready' ? 'bad' : share >= STORE_FULL || fails === 'degraded' ? 'warning' : '' },
    { label: 'RabbitMQ', figure: isStarting(now) ? '–' : down.length === 0 ? 'ready' : down[0].status.replaceAll('_', ' '),
      below: [now.relay.length > 0 && `relay on ${linked} of ${counted(now.relay.length, 'vhost')}, `, counted(now.connections, 'client')], href: '#/connections',
      tone: down.some(({ status }) => status === 'not_ready') ? 'bad' : down.length > 0 ? 'warning' : '' },
  ];
}

const TONES = { ready: 'good', degraded: 'warning', not_ready: 'bad' };
const LINKS = { connected: 'good', idle: 'quiet', connecting: 'quiet', blocked: 'warning', stalled: 'warning' };

const part = ({ name, status, reason }) => h('li', {}, h('b', {}, name), badge(status, TONES[status] ?? 'bad'), reason && h('bdi', { class: 'quiet' }, reason));

const link = ({ vhost, state, reason, in_flight: flying }) => h('li', {}, h('b', {}, text(vhost)), badge(state, state === 'connecting' && reason ? 'warning' : LINKS[state] ?? 'bad'),
  Number(flying) > 0 && h('span', { class: 'quiet' }, `${count(flying)} in flight`), reason && h('bdi', { class: 'quiet' }, reason));

/** What stands below, each with what it is made of. */
const PARTS = [
  [partsIn, (parts) => [h('h2', {}, 'Parts'), h('ul', { class: 'states' }, parts.map(part))]],
  [({ relay }) => relay, (relay) => [h('h2', {}, 'Relay'), relay.length > 0
    ? h('ul', { class: 'states' }, relay.map(link))
    : h('p', { class: 'quiet' }, 'It connects to a virtual host when the first transaction there is committed.')]],
  [({ version, started_at: started, commit_seconds: commit, rates, connections }) => ({ version, started, commit, rolled: rates.rolled_back, connections }), proxyOf],
];

function proxyOf({ version, started, commit, rolled, connections }) {
  const pairs = [
    ['Version', version], ['Started', time(started)], ['Connections', h('a', { href: '#/connections', data: { key: 'connections' } }, count(connections))],
    ['Commit p50, p99', `${seconds(commit.p50)}, ${seconds(commit.p99)}`], ['Rolled back', rate(rolled)],
  ];
  return [h('h2', {}, 'Proxy'), h('dl', { class: 'facts' }, pairs.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]))];
}
