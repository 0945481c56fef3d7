// Dialogs in which something is decided: what will happen, the reason, and what became of it.

import { h, put, button, say, text } from './dom.js';
import { Problem } from './api.js';
import { count, counted } from './text.js';

const REASON_CHARS_MAX = 1000;
let last = 0;

/** A modal dialog with a head, to be filled and shown; removed when it is closed. Escape closes it, unless `busy()` says no. */
function make(title, busy = () => false) {
  const id = `dialog-${(last += 1)}`;
  const body = h('div', { class: 'dialog-body' });
  const dialog = h('dialog', { 'aria-labelledby': id }, h('h2', { id }, title), body);
  const opener = document.activeElement;
  dialog.addEventListener('cancel', (event) => busy() && event.preventDefault());
  dialog.addEventListener('close', () => {
    dialog.remove();
    // What opened it may have gone with what it did.
    (opener?.isConnected && !opener.disabled ? opener : document.getElementById('main')).focus();
  });
  document.body.append(dialog);
  return { dialog, body };
}

/** Closes whatever is open: the session is over, say. */
export function closeAll() {
  document.querySelectorAll('dialog[open]').forEach((dialog) => dialog.close());
}

function reasonField() {
  const id = `reason-${(last += 1)}`;
  const area = h('textarea', { id, rows: 2, required: true, maxlength: REASON_CHARS_MAX, autofocus: true, 'aria-describedby': `${id}-help` });
  // Blanks alone are no reason for the server either.
  const validate = () => area.setCustomValidity(area.value.trim() === '' ? 'Say why: the history keeps it.' : '');
  area.addEventListener('input', validate);
  validate();
  const field = h('div', { class: 'field' }, h('label', { for: id }, 'Reason'), area,
    h('p', { class: 'quiet', id: `${id}-help` }, 'It is kept with your name in the history, and in the log.'));
  return { field, value: () => area.value };
}

/** Why something was not done, in the words of the server. */
export function problemBox(problem, ...more) {
  const conflict = problem.status === 409 || problem.status === 412;
  const heads = {
    0: 'No answer', 401: 'Not logged in', 403: 'Not allowed', 404: 'Not there', 409: 'Already decided', 412: 'It has changed meanwhile',
    503: 'Not ready',
  };
  const head = heads[problem.status] ?? problem.title ?? 'It failed';
  return h('div', { class: `problem ${conflict ? 'is-conflict' : ''}`, role: 'alert' },
    h('strong', {}, head), h('p', {}, h('bdi', {}, problem.message)), more);
}

function asProblem(error) {
  if (error instanceof Problem) return error;
  return new Problem(0, { title: 'The page failed', detail: String(error) });
}

/**
 * Asks for a reason and does one thing. `what`: sentences about what will happen; `act(reason)` does it; `done(answer)` and
 * `changed()`, when somebody else was faster, follow when the dialog is closed.
 */
export function confirmOne({ title, what, verb, danger = false, act, done, changed }) {
  let running = false;
  const { dialog, body } = make(title, () => running);
  const reason = reasonField();
  const outcome = h('div');
  const submit = h('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, verb);
  const cancel = button('Cancel', () => dialog.close());
  const form = h('form', { method: 'dialog' }, h('div', { class: 'what' }, what), reason.field, outcome,
    h('div', { class: 'buttons' }, submit, cancel));
  put(body, form);
  // What is to have the focus has to be there by now.
  dialog.showModal();
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (running) return;
    running = true;
    submit.disabled = true;
    cancel.disabled = true;
    put(outcome);
    try {
      const answer = await act(reason.value());
      dialog.close();
      done(answer);
    } catch (error) {
      const problem = asProblem(error);
      submit.disabled = false;
      cancel.disabled = false;
      if (problem.status !== 409 && problem.status !== 412) {
        put(outcome, problemBox(problem));
        submit.focus();
        return;
      }
      const look = button('Show it as it is now', () => {
        dialog.close();
        changed();
      }, { class: 'primary' });
      // A second try would be no better informed than the first: look first.
      put(body, problemBox(problem, h('p', {}, 'Nothing was done.')), h('div', { class: 'buttons' }, look));
      look.focus();
    } finally {
      running = false;
    }
  });
}

/**
 * Asks which action, counts, asks for a reason and an explicit yes, and works through many. `actions`: `{ value, label, verb,
 * danger, reason }`; `scope`: elements that say what is meant; `count(action)` gives `{ matched, at_least }`; `steps(action,
 * reason)` is an async iterator of `{ done, skipped, failed }`.
 */
export function confirmMany({ title, scope, actions, noun, count: matching, steps, link, done }) {
  const run = { running: false, stopped: false, changed: false };
  const { dialog, body } = make(title, () => run.running);
  dialog.addEventListener('close', () => run.changed && done());
  const name = `action-${(last += 1)}`;
  const choice = h('fieldset', { class: 'choice' }, h('legend', {}, 'What becomes of them'), actions.map((action, index) =>
    h('label', {}, h('input', { type: 'radio', name, value: action.value, required: true, autofocus: index === 0 }), ' ', action.label)));
  const outcome = h('div');
  const submit = h('button', { type: 'submit', class: 'primary' }, 'Count them');
  const form = h('form', { method: 'dialog' }, h('div', { class: 'what' }, scope), choice, outcome,
    h('div', { class: 'buttons' }, submit, button('Cancel', () => dialog.close())));
  put(body, form);
  dialog.showModal();
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    const value = form.elements[name].value;
    const action = actions.find((one) => one.value === value);
    submit.disabled = true;
    put(outcome);
    try {
      const found = await matching(action);
      if (BigInt(found.matched) === 0n) {
        put(outcome, h('p', { class: 'note', role: 'status' }, `None matches: there is nothing to ${action.verb.toLowerCase()}.`));
      } else {
        manySure({ body, dialog, action, found, scope, noun, steps, link, run });
      }
    } catch (error) {
      put(outcome, problemBox(asProblem(error)));
    }
    submit.disabled = false;
  });
}

function manySure({ body, dialog, action, found, scope, noun, steps, link, run }) {
  const size = `${found.at_least ? 'at least ' : ''}${counted(found.matched, noun)}`;
  const reason = action.reason === false ? null : reasonField();
  const sure = h('input', { type: 'checkbox', required: true, autofocus: reason === null });
  const outcome = h('div');
  const submit = h('button', { type: 'submit', class: action.danger ? 'danger' : 'primary' }, `${action.verb} ${size}`);
  const form = h('form', { method: 'dialog' },
    h('div', { class: 'what' }, h('p', { class: 'large', role: 'status' }, h('b', {}, size), String(found.matched) === '1' ? ' matches.' : ' match.'), scope,
      h('p', {}, action.explain)),
    reason?.field, h('label', { class: 'sure' }, sure, ` Yes, ${action.verb.toLowerCase()} ${size}`), outcome,
    h('div', { class: 'buttons' }, submit, button('Cancel', () => dialog.close())));
  put(body, form);
  form.querySelector('[autofocus]').focus();
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    manyRun({ body, dialog, action, found, noun, run, link, steps: steps(action, reason?.value()) });
  });
}

async function manyRun({ body, dialog, action, found, noun, run, link, steps }) {
  const total = { done: 0, skipped: 0, failed: [] };
  const bar = h('progress', { max: Number(found.matched), value: 0, 'aria-label': `${action.verb}: progress` });
  const line = h('p', { role: 'status' }, 'Working…');
  const failures = h('div');
  const stop = button('Stop', () => {
    run.stopped = true;
    stop.disabled = true;
  });
  const buttons = h('div', { class: 'buttons' }, stop);
  put(body, bar, line, failures, buttons);
  stop.focus();
  run.running = true;
  run.changed = true;
  let broken = null;
  try {
    for await (const step of steps) {
      total.done += Number(step.done);
      total.skipped += Number(step.skipped);
      total.failed.push(...step.failed);
      bar.value = total.done + total.skipped + total.failed.length;
      put(line, sentence(total, found));
      if (run.stopped) break;
    }
  } catch (error) {
    broken = asProblem(error);
  }
  run.running = false;
  if (broken === null && !run.stopped) bar.value = bar.max;
  put(line, broken === null && !run.stopped ? 'Done: ' : 'Stopped: ', sentence(total, found));
  const left = total.failed.length > 20 ? h('p', {}, `… and ${counted(total.failed.length - 20, noun)} more`) : null;
  put(failures, broken && problemBox(broken),
    total.failed.length > 0 && h('ul', { class: 'failures' }, total.failed.slice(0, 20).map(({ id, detail }) =>
      h('li', {}, h('a', { href: link(id), on: { click: () => dialog.close() } }, id), ': ', text(detail)))), left);
  const close = button('Close', () => dialog.close(), { class: 'primary' });
  put(buttons, close);
  close.focus();
  say(line.textContent);
}

function sentence({ done, skipped, failed }, found) {
  const of = `${count(done)} of ${found.at_least ? 'at least ' : ''}${count(found.matched)} done`;
  const aside = [
    skipped > 0 && `${count(skipped)} skipped, because others were faster`,
    failed.length > 0 && `${count(failed.length)} failed`,
  ].filter(Boolean);
  return [of, ...aside].join(', ');
}
