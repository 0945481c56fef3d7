// Elements from texts. Every text goes through `pieces`, so nothing that comes from outside is ever markup, nor hidden.

import { pieces, plain, distance, moment } from './text.js';

const SVG = 'http://www.w3.org/2000/svg';

/**
 * An element. `props`: `class`, `data` (an object), `on` (an object of listeners), else an attribute, or a property if
 * its value is true or false. Children: elements, strings, arrays; null and false are left out.
 */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined) continue;
    if (name === 'data') Object.assign(element.dataset, value);
    else if (name === 'on') Object.entries(value).forEach(([event, listener]) => element.addEventListener(event, listener));
    else if (typeof value === 'boolean') element.toggleAttribute(name, value);
    else element.setAttribute(name, typeof value === 'string' ? plain(value) : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : shown(String(child)));
  }
}

/** Puts these in the place of what `element` holds. */
export function put(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

function shown(text, options) {
  const fragment = document.createDocumentFragment();
  for (const piece of pieces(text, options)) {
    if (!piece.hidden) {
      fragment.append(piece.text);
      continue;
    }
    const mark = document.createElement('span');
    mark.className = 'hidden-character';
    mark.textContent = piece.text;
    fragment.append(mark);
  }
  return fragment;
}

/** A text from outside: it can't change the direction of what stands beside it. */
export function text(value, empty = '(empty)') {
  if (value === null || value === undefined) return h('span', { class: 'quiet' }, '–');
  if (value === '') return h('span', { class: 'quiet' }, empty);
  return h('bdi', { class: 'text' }, value);
}

/** Many lines from outside, with their line ends. */
export function lines(value, props) {
  const pre = h('pre', { tabindex: 0, ...props });
  pre.append(shown(value, { lines: true }));
  return pre;
}

/** A moment, and how far it is, which goes on counting. */
export function time(at, { short = false, millis = false } = {}) {
  if (!at) return h('span', { class: 'quiet' }, '–');
  const exact = moment(at, { millis });
  const away = h('time', { datetime: at, title: `${exact} here, ${at}`, data: { away: '' } }, distance(at));
  return short ? away : h('span', { class: 'moment' }, h('span', {}, exact), ' ', h('span', { class: 'quiet' }, '(', away, ')'));
}

/** Brings the distances of all times on the page up to date. */
export function countTimes() {
  for (const element of document.querySelectorAll('time[data-away]')) {
    const now = distance(element.getAttribute('datetime'));
    if (element.textContent !== now) element.textContent = now;
  }
}

export const badge = (word, kind = word) => h('span', { class: `badge is-${kind.replaceAll('_', '-')}` }, word.replaceAll('_', ' '));

export const button = (label, onclick, props = {}) => h('button', { type: 'button', ...props, on: { click: onclick } }, label);

/** Runs `change`, which replaces elements, and gives the focus to what stands in the place of what had it. */
export function keepFocus(change) {
  const key = document.activeElement?.dataset?.key;
  change();
  if (key !== undefined && document.activeElement === document.body) {
    document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  }
}

/** Whether somebody is about to copy something from the page: it must not change under the hand. */
export const isSelecting = () => getSelection().type === 'Range';

/** Tells those who don't see the page. */
export function say(sentence) {
  put(document.getElementById('said'), sentence);
}

/**
 * A table that becomes a list of cards where there is little room; so its roles are said. `columns`: `{ head, cell(item),
 * kind }`; the kind `number` is set to the right, `row` names the row.
 */
export function table(label, columns, items, rowProps = () => ({})) {
  const cell = (column, item) =>
    h(column.kind === 'row' ? 'th' : 'td', {
      role: column.kind === 'row' ? 'rowheader' : 'cell',
      scope: column.kind === 'row' ? 'row' : null,
      class: column.kind ? `as-${column.kind}` : null,
      data: typeof column.head === 'string' ? { label: column.head } : {},
    }, h('div', {}, column.cell(item)));
  const head = (column) =>
    h('th', { role: 'columnheader', scope: 'col', class: column.kind === 'number' ? 'as-number' : null }, column.head);
  return h('table', { role: 'table', 'aria-label': label },
    h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, columns.map(head))),
    h('tbody', { role: 'rowgroup' },
      items.map((item) => h('tr', { role: 'row', ...rowProps(item) }, columns.map((column) => cell(column, item))))));
}
