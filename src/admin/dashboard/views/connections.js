// Who is connected, how busy they are, and a way to send one home.

import { h, put, badge, button, keepFocus, say, table, text, time } from '../dom.js';
import { get, path, remove } from '../api.js';
import { confirmOne } from '../dialog.js';
import { empty, follow, heading, load, viewerNote } from '../parts.js';
import { bytes, count, counted } from '../text.js';

const PAGE = 100;
const REFRESH = 2;

export function connections(main, { query, signal, who }) {
  const operator = who.role === 'operator';
  const cursor = query.get('cursor');
  const rows = h('div');
  let before = null;
  const fetch = () => get('/api/connections', { query: { limit: PAGE, cursor }, signal });
  const show = ({ body }) => {
    const now = { at: performance.now(), items: new Map(body.items.map((item) => [item.id, item])) };
    const columns = columnsOf(before ? ratesSince(before, now) : () => null, operator ? close : null);
    const pages = (cursor || body.next_cursor) && h('nav', { class: 'pages', 'aria-label': 'Pages' },
      cursor && h('a', { class: 'as-button', href: '#/connections' }, '« First page'),
      body.next_cursor && h('a', { class: 'as-button', href: path`#/connections?cursor=${body.next_cursor}` }, 'Next page »'));
    keepFocus(() => put(rows, body.items.length === 0
      ? empty('No client is connected.', h('p', { class: 'quiet' }, 'Clients connect to the port of ', h('code', {}, 'listen.address'), ' as they would to RabbitMQ.'))
      : [h('div', { class: 'scroll' }, table('connections', columns, body.items)), h('p', { class: 'quiet' }, counted(body.items.length, 'connection'))], pages));
    before = now;
  };
  const refresh = async () => show(await fetch());
  const close = (item) => confirmOne({
    title: 'Close this connection', verb: 'Close it', danger: true,
    what: [h('p', {}, h('b', {}, text(item.user)), ' from ', text(item.peer)),
      h('p', {}, 'The client gets connection.close 320 with your reason, and may connect again. What it has not committed is rolled back, or in doubt if it has a name.')],
    act: (reason) => remove(path`/api/connections/${item.id}`, { reason }),
    done: () => {
      say('The connection is closed');
      main.querySelector('h1').focus();
      refresh().catch(reload);
    },
    changed: () => reload(),
  });
  const reload = () => load(rows, signal, fetch, show);
  put(main, heading('Connections'), !operator && viewerNote(), rows);
  reload();
  follow(signal, REFRESH, refresh);
  return 'Connections';
}

/** Bytes per second of a connection since the news before. */
function ratesSince(before, now) {
  const passed = (now.at - before.at) / 1000;
  return (id) => {
    const [old, fresh] = [before.items.get(id), now.items.get(id)];
    if (!old || passed <= 0) return null;
    const per = (name) => Math.max(0, Number(BigInt(fresh[name]) - BigInt(old[name])) / passed);
    return { received: per('received_bytes'), sent: per('sent_bytes') };
  };
}

const TONES = { open: 'good', opening: 'quiet', blocked: 'warning', closing: 'quiet' };

function columnsOf(rates, close) {
  const bytesOf = (total, rate) => [bytes(total), rate !== undefined && rate !== null && h('span', { class: 'quiet' }, ` ${bytes(rate)}/s`)];
  return [
    { head: 'Peer', kind: 'row', cell: (item) => [text(item.peer), ' ', item.tls && badge('TLS', 'good')] },
    { head: 'User', cell: (item) => text(item.user) },
    { head: 'Virtual host', cell: (item) => text(item.vhost) },
    { head: 'Client', cell: (item) => [text(item.product), ' ', item.version && h('span', { class: 'quiet' }, text(item.version)), item.name && h('div', { class: 'quiet' }, text(item.name))] },
    { head: 'Channels', kind: 'number', cell: (item) => [count(item.channels), Number(item.transactional_channels) > 0 && h('span', { class: 'quiet' }, ` (${count(item.transactional_channels)} tx)`)] },
    { head: 'From it', kind: 'number', cell: (item) => bytesOf(item.received_bytes, rates(item.id)?.received) },
    { head: 'To it', kind: 'number', cell: (item) => bytesOf(item.sent_bytes, rates(item.id)?.sent) },
    { head: 'State', cell: (item) => badge(item.state, TONES[item.state] ?? 'quiet') },
    { head: 'Since', cell: (item) => time(item.connected_at, { short: true }) },
    close && { head: 'Action', cell: (item) => button('Close…', () => close(item), { 'aria-label': `Close the connection of ${item.user ?? 'nobody yet'} from ${item.peer}`, data: { key: `close-${item.id}` } }) },
  ].filter(Boolean);
}
