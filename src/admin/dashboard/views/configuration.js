// What is in force, and where it comes from.

import { h, put, say, table, text } from '../dom.js';
import { get } from '../api.js';
import { empty, heading, load } from '../parts.js';
import { counted } from '../text.js';

export function configuration(main, { query, signal }) {
  const place = h('div');
  const field = h('input', { id: 'find', type: 'search', autocomplete: 'off', spellcheck: 'false' });
  field.value = query.get('find') ?? '';
  let items = [];
  const show = () => {
    const wanted = field.value.trim().toLowerCase();
    const found = items.filter(({ key, value, source }) => `${key} ${value} ${source}`.toLowerCase().includes(wanted));
    put(place, found.length === 0 ? empty('No key fits.') : table('configuration', COLUMNS, found));
    say(counted(found.length, 'key'));
  };
  field.addEventListener('input', () => {
    // It stands in the URL, and a letter is no step back in the history.
    history.replaceState(null, '', `#/configuration${field.value ? `?find=${encodeURIComponent(field.value)}` : ''}`);
    show();
  });
  put(main, heading('Configuration'), h('p', { class: 'quiet' }, 'What is in force now, and where each value comes from. Secrets are not shown.'),
    h('div', { class: 'filters', role: 'search' }, h('div', { class: 'field' }, h('label', { for: 'find' }, 'Find a key or a value'), field)), place);
  load(place, signal, () => get('/api/config', { signal }), ({ body }) => {
    items = body.items;
    show();
  });
  return 'Configuration';
}

const COLUMNS = [
  { head: 'Key', kind: 'row', cell: ({ key }) => h('code', {}, text(key)) },
  { head: 'Value', cell: ({ value }) => h('code', {}, text(typeof value === 'string' ? value : JSON.stringify(value))) },
  { head: 'Source', cell: ({ source }) => h('span', { class: 'quiet' }, text(source)) },
];
