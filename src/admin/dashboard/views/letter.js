// One dead letter: why it is one, what is in it, and what becomes of it.

import { h, put, button, say, text, time } from '../dom.js';
import { get, path, post } from '../api.js';
import { confirmOne } from '../dialog.js';
import { heading, load, viewerNote } from '../parts.js';
import { count } from '../text.js';
import { exchange, messageOf } from './messages.js';

export function letter(main, { id, signal, who }) {
  const url = path`/api/dead-letters/${id}`;
  const content = h('div', { class: 'stack' });
  const show = () => load(content, signal, () => get(url, { signal }), ({ body }) => put(content, contentOf(body)));
  const contentOf = (it) => [
    who.role === 'operator' ? h('div', { class: 'buttons' }, buttonsOf(it)) : viewerNote(),
    h('section', { class: 'panel' }, h('h2', {}, 'Why it is here'), h('p', {}, 'RabbitMQ refused it: ', h('b', {}, String(it.reply_code)), ' ', text(it.reply_text)), factsOf(it)),
    it.message && h('section', { class: 'panel' }, h('h2', {}, 'Message'), messageOf(it.message)),
  ];
  const buttonsOf = (it) => [
    button('Retry…', () => decide(it, 'Retry', 'retry', false, 'It is published again, behind what is committed by now. If RabbitMQ refuses it again, it comes back here.'), { class: 'primary' }),
    button('Discard…', () => decide(it, 'Discard', 'discard', true, 'It is deleted and never delivered. This can’t be taken back.'), { class: 'danger' }),
  ];
  const decide = (it, verb, word, danger, what) => confirmOne({
    title: `${verb} dead letter ${id}`, verb, danger, what: [h('p', {}, exchange(it.exchange), ' → ', text(it.routing_key)), h('p', {}, what)],
    act: (reason) => post(`${url}/${word}`, { reason }),
    done: () => {
      say(`Done: ${verb}`);
      put(content, h('p', { class: 'note' }, verb === 'Retry' ? 'It is on its way to RabbitMQ again. ' : 'It is discarded. ',
        h('a', { href: path`#/transactions/${it.transaction}` }, 'See its transaction'), ' or ', h('a', { href: '#/dead-letters' }, 'all dead letters'), '.'));
      main.querySelector('h1').focus();
    },
    changed: show,
  });
  put(main, h('p', { class: 'crumb' }, h('a', { href: '#/dead-letters' }, 'Dead letters')), heading(`Dead letter ${id}`), content);
  show();
  return `Dead letter ${id}`;
}

function factsOf(it) {
  const pairs = [
    ['Exchange', exchange(it.exchange)], ['Routing key', text(it.routing_key, '(no routing key)')], ['Message-id', text(it.message_id)],
    ['Since', time(it.since)], ['Attempts', count(it.attempts)],
    ['Transaction', h('a', { href: path`#/transactions/${it.transaction}` }, h('code', {}, it.transaction))],
  ];
  return h('dl', { class: 'facts' }, pairs.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
}
