// A list with filters that stand in the URL, pages, and rows that can be chosen.

import { h, put, button, table, say, text } from './dom.js';
import { get } from './api.js';
import { load, empty } from './parts.js';
import { counted, clock } from './text.js';

const PAGE = 50;

/** The filters of a query of the page, without its place in the list. */
export function filtersOf(query, fields) {
  const given = fields.map(({ name }) => [name, query.get(name) ?? '']).filter(([, value]) => value !== '');
  return Object.fromEntries(given);
}

export function href(route, filters, more = {}) {
  const search = new URLSearchParams({ ...filters, ...more }).toString();
  return `#/${route}${search ? `?${search}` : ''}`;
}

/** What a filter says, for people. */
export function scopeOf(filters, fields, noun) {
  const given = fields.filter(({ name }) => name in filters);
  if (given.length === 0) return [h('p', {}, `No filter is set: all ${noun}s are meant.`)];
  return [h('p', {}, `All ${noun}s with`),
    h('ul', {}, given.map(({ name, label }) => h('li', {}, `${label}: `, h('b', {}, text(filters[name])))))];
}

/**
 * A list. `fields`: `{ name, label, options?, hint? }`; `actions`: `{ label, danger, open(rows) }` over chosen rows,
 * `whole` over all that match, where `may(filters)`; both only for those who may decide.
 */
export class List {
  #options;
  #filters;
  #signal;
  #place = h('div', { class: 'rows' });
  #chosen = new Map();
  #bar = h('div', { class: 'chosen' });
  #items = [];

  constructor(options, { query, signal }) {
    this.#options = options;
    this.#signal = signal;
    this.#filters = filtersOf(query, options.fields);
    this.cursor = query.get('cursor');
    this.element = h('div', {}, this.#form(), this.#bar, this.#place);
  }

  get filters() {
    return this.#filters;
  }

  #form() {
    const { fields, route } = this.#options;
    const field = ({ name, label, options, hint }) => {
      const id = `filter-${name}`;
      const value = this.#filters[name] ?? '';
      const input = options
        ? h('select', { id, name }, options.map(([key, word]) => h('option', { value: key, selected: key === value }, word)))
        : h('input', { id, name, value: '', placeholder: hint, autocomplete: 'off', spellcheck: 'false' });
      // A property: the attribute would show hidden characters spelt out, and search for these.
      if (!options) input.value = value;
      return h('div', { class: 'field' }, h('label', { for: id }, label), input);
    };
    const apply = (form) => {
      const given = [...new FormData(form)].filter(([, value]) => value !== '');
      location.hash = href(route, Object.fromEntries(given));
    };
    const form = h('form', { class: 'filters', role: 'search', 'aria-label': this.#options.label }, fields.map(field),
      h('div', { class: 'buttons' }, h('button', { type: 'submit' }, 'Filter'),
        Object.keys(this.#filters).length > 0 && h('a', { class: 'as-button', href: `#/${route}` }, 'Clear')));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      apply(form);
    });
    form.addEventListener('change', (event) => event.target.matches('select') && apply(form));
    return form;
  }

  load() {
    const query = { ...this.#filters, limit: PAGE, cursor: this.cursor };
    const fetch = () => get(this.#options.url, { query, signal: this.#signal });
    return load(this.#place, this.#signal, fetch, ({ body }) => this.#show(body));
  }

  #show({ items, next_cursor: next }) {
    const { noun, route, columns, none } = this.#options;
    this.#items = items;
    this.#chosen.clear();
    this.#showBar();
    const first = this.cursor && h('a', { class: 'as-button', href: href(route, this.#filters) }, '« First page');
    const more = next && h('a', { class: 'as-button', href: href(route, this.#filters, { cursor: next }) }, 'Next page »');
    const pages = (first || more) && h('nav', { class: 'pages', 'aria-label': 'Pages' }, first, more);
    if (items.length === 0) {
      const filtered = Object.keys(this.#filters).length > 0;
      const nothing = next
        ? empty(`None of the ${noun}s that were looked through match.`, h('p', {}, 'There are more on the next page.'))
        : filtered ? empty(`No ${noun} matches this filter.`, h('p', {}, h('a', { href: `#/${route}` }, `Show all ${noun}s`))) : none();
      put(this.#place, nothing, pages);
      say(`No ${noun}s`);
      return;
    }
    const all = this.#mayChoose() ? [this.#chooser(), ...columns] : columns;
    put(this.#place, h('div', { class: 'scroll' }, table(`${noun}s`, all, items)),
      h('div', { class: 'foot' }, h('p', { class: 'quiet' },
        `${counted(items.length, noun)}${next ? ' of more' : ''}, as of ${clock(new Date())}`), pages));
    say(`${counted(items.length, noun)}${next ? ', and more on the next page' : ''}`);
  }

  #mayChoose() {
    return this.#options.actions.length > 0;
  }

  #chooser() {
    const named = (item) => this.#options.title(item);
    const all = h('input', { type: 'checkbox', 'aria-label': 'Choose all on this page', on: { change: () => {
      this.#place.querySelectorAll('tbody input[type=checkbox]').forEach((box) => {
        if (box.checked !== all.checked) box.click();
      });
    } } });
    const toggle = (item, box) => {
      if (box.checked) this.#chosen.set(item.id, item);
      else this.#chosen.delete(item.id);
      all.checked = this.#chosen.size === this.#items.length;
      all.indeterminate = this.#chosen.size > 0 && !all.checked;
      this.#showBar();
    };
    const one = (item) => h('input', { type: 'checkbox', 'aria-label': `Choose ${named(item)}`, on: { change: (event) => toggle(item, event.target) } });
    return { head: all, cell: one, kind: 'choice' };
  }

  #showBar() {
    const { actions, noun, whole } = this.#options;
    if (!this.#mayChoose()) return;
    const rows = [...this.#chosen.values()];
    // Buttons that have the focus stay, so that it is not lost.
    if (rows.length === 0) {
      put(this.#bar, whole.may(this.#filters) && [h('span', { class: 'quiet' }, 'Choose rows, or'), button(whole.label, () => whole.open(this.#filters))]);
      return;
    }
    put(this.#bar, h('b', { role: 'status' }, `${counted(rows.length, noun)} chosen`),
      actions.map(({ label, danger, open }) => button(label, () => open(rows), { class: danger ? 'danger' : 'primary' })));
  }
}
