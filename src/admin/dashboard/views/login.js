// Who has no session says who they are.

import { h, put } from '../dom.js';
import { post, Problem } from '../api.js';
import { problemBox } from '../dialog.js';

export function login(main, sentence, done) {
  const token = h('input', {
    id: 'token', type: 'password', required: true, autocomplete: 'current-password', spellcheck: 'false', 'aria-describedby': 'token-help',
  });
  const outcome = h('div');
  const submit = h('button', { type: 'submit', class: 'primary' }, 'Log in');
  const form = h('form', { class: 'login' },
    h('h1', { tabindex: -1 }, 'Log in'),
    sentence && h('p', { role: 'status' }, sentence),
    h('div', { class: 'field' }, h('label', { for: 'token' }, 'Token'), token),
    outcome, submit,
    h('div', { class: 'quiet', id: 'token-help' },
      h('p', {}, 'A token is the line in one of the files that ', h('code', {}, 'admin.tokens'), ' names in the configuration of this proxy. ',
        'Who runs the proxy has it, or makes one for you:'),
      h('pre', { tabindex: 0, 'aria-label': 'How to make a token' },
        'head -c 32 /dev/urandom | base64 > alice.token'),
      h('p', {}, 'The name of the file, here ', h('code', {}, 'alice'), ', is the name that the history keeps.')));
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    submit.disabled = true;
    put(outcome);
    try {
      await post('/api/session', { token: token.value.trim() });
      done();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      const wrong = error.status === 401 ? new Problem(401, { detail: 'This token is not one that counts.' }) : error;
      put(outcome, problemBox(wrong));
      token.select();
    }
    submit.disabled = false;
  });
  put(main, form);
  token.focus();
}
