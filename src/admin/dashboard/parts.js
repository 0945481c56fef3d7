// What the views share: waiting, failing, being empty, and the bar above a list.

import { button, h, isSelecting, put } from './dom.js';
import { problemBox } from './dialog.js';
import { Problem } from './api.js';
import { live } from './live.js';

const AGAIN_MILLIS = 3000;

/**
 * Fills `place` with what `fetch` gets and `render` makes of it. Says that it waits, and why it failed; what may pass by
 * itself is tried again as long as `signal` is not aborted.
 */
export async function load(place, signal, fetch, render) {
  place.setAttribute('aria-busy', 'true');
  if (place.childElementCount === 0) put(place, h('p', { class: 'quiet waiting' }, 'Loading…'));
  try {
    const answer = await fetch();
    if (!signal.aborted) render(answer);
  } catch (error) {
    if (signal.aborted || error.name === 'AbortError') return;
    failed(place, signal, error, () => load(place, signal, fetch, render));
  } finally {
    place.removeAttribute('aria-busy');
  }
}

function failed(place, signal, error, again) {
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401) return;
  const passing = [0, 429, 503].includes(error.status);
  const box = problemBox(error, passing && h('p', { class: 'quiet' }, 'This page tries again by itself.'), button('Try again', again));
  put(place, box);
  if (!passing) return;
  const timer = setTimeout(() => box.isConnected && again(), AGAIN_MILLIS);
  signal.addEventListener('abort', () => clearTimeout(timer));
}

/** The head of a view. */
export const heading = (title, ...aside) => h('div', { class: 'head' }, h('h1', { tabindex: -1 }, title), aside);

export const empty = (sentence, ...more) => h('div', { class: 'empty' }, h('p', { class: 'large' }, sentence), more);

/** Calls `refresh` with every `every`th news, one at a time, until `signal` is aborted. */
export function follow(signal, every, refresh) {
  let turn = 0;
  let running = false;
  live.addEventListener('overview', async () => {
    turn += 1;
    // What a dialog is about does not change under the hand.
    if (running || turn % every !== 0 || document.querySelector('dialog[open]') || isSelecting()) return;
    running = true;
    try {
      await refresh();
    } catch (error) {
      // The banner tells that the server is gone, and the next news tries again.
      if (!(error instanceof Problem) && error.name !== 'AbortError') throw error;
    } finally {
      running = false;
    }
  }, { signal });
}

export const VIEWER = 'Your token has the role viewer: you can look, and not decide.';

/** The note that stands where an operator has buttons. */
export const viewerNote = () => h('p', { class: 'note' }, VIEWER);
