// The messages of a transaction, or that of a dead letter: properties and headers with their AMQP types, and the body.

import { h, put, button, lines, text, badge } from '../dom.js';
import { get } from '../api.js';
import { load } from '../parts.js';
import { bytes, count, hex, indented } from '../text.js';

const PAGE = 20;

/** A section that shows the messages under `url` page by page. */
export function messages(url, signal) {
  const items = h('div');
  const more = h('div');
  const element = h('section', { class: 'panel', 'aria-label': 'Messages' }, h('h2', {}, 'Messages'), items, more);
  const fetch = (cursor) => get(`${url}/messages`, { query: { limit: PAGE, cursor }, signal });
  const show = ({ body }, added) => {
    if (!added) put(items, body.items.length === 0 && h('p', { class: 'quiet' }, 'None is kept any more.'));
    items.append(...body.items.map(messageOf));
    put(more, body.next_cursor && button('Show more', () => load(more, signal, () => fetch(body.next_cursor), (next) => show(next, true))));
  };
  return { element, load: () => load(items, signal, () => fetch(null), (answer) => show(answer, false)) };
}

export function messageOf(message) {
  return h('article', { class: 'message', 'aria-label': `Message ${message.index}` },
    h('h3', {}, h('span', { class: 'quiet' }, `#${message.index} `), exchange(message.exchange), ' → ', text(message.routing_key, '(no routing key)')),
    h('p', { class: 'quiet' }, bytes(message.bytes), message.mandatory && ', mandatory', message.state && [' ', badge(message.state)]),
    entries('Properties', message.properties), entries('Headers', message.headers), body(message));
}

export const exchange = (name) => text(name, '(default exchange)');

function entries(title, list) {
  if (!list || list.length === 0) return null;
  return h('details', { open: true }, h('summary', {}, `${title} (${count(list.length)})`), h('div', { class: 'scroll' }, fields(title, list)));
}

function fields(title, list) {
  return h('table', { class: 'fields', 'aria-label': title },
    h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Name'), h('th', { scope: 'col' }, 'Type'), h('th', { scope: 'col' }, 'Value'))),
    h('tbody', {}, list.map((field) => h('tr', {}, h('th', { scope: 'row' }, text(field.name)), h('td', {}, h('code', {}, field.type)), h('td', {}, value(field))))));
}

/** A table or an array within is a list of its own. */
function value({ value: it }) {
  if (it === null || it === undefined) return h('span', { class: 'quiet' }, 'no value');
  if (!Array.isArray(it)) return text(typeof it === 'object' ? JSON.stringify(it) : String(it));
  if (it.length === 0) return h('span', { class: 'quiet' }, '(empty)');
  return h('ul', { class: 'nested' }, it.map((inner) => h('li', {},
    'name' in inner && [h('b', {}, text(inner.name)), ' '], h('code', {}, inner.type), ' ', value(inner))));
}

function body(message) {
  const it = message.body;
  if (it === null || it === undefined) {
    return h('p', { class: 'note' }, 'Its body is not shown: ', h('code', {}, 'admin.show_bodies'), ' is off.');
  }
  if (it.text === '') return h('p', { class: 'quiet' }, 'Its body is empty.');
  const forms = formsOf(it);
  const place = h('div');
  const buttons = forms.map(([word, make], index) => button(word, () => choose(index), { 'aria-pressed': 'false' }));
  const choose = (chosen) => {
    buttons.forEach((one, index) => one.setAttribute('aria-pressed', String(index === chosen)));
    put(place, lines(forms[chosen][1](), { class: 'body', 'aria-label': `Body as ${forms[chosen][0]}` }));
  };
  choose(0);
  return h('div', { class: 'body-part' }, h('div', { class: 'body-head' }, h('b', {}, 'Body'), h('div', { class: 'choice-buttons', role: 'group', 'aria-label': 'Show the body as' }, buttons)),
    it.truncated && h('p', { class: 'note' }, `Only its start is shown, of ${bytes(message.bytes)}.`), place);
}

/** How a body can be shown, the best first. */
function formsOf({ form, text: raw }) {
  const data = form === 'hex' ? unhexed(raw) : new TextEncoder().encode(raw);
  const asHex = ['Hex', () => hex(data)];
  if (form === 'hex') {
    // Control characters alone make it no text for the server; here they are spelt out.
    const words = decoded(data);
    return words === null ? [asHex] : [asHex, ['Text', () => words]];
  }
  const asText = ['Text', () => raw];
  return form === 'json' ? [['JSON', () => indented(raw)], asText, asHex] : [asText, asHex];
}

const unhexed = (digits) => Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));

function decoded(data) {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    return null;
  }
}
