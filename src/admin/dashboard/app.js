// The page: who looks, at what, and whether the news come in.

import { h, put, button, countTimes, say } from './dom.js';
import { get, remove, session, Problem } from './api.js';
import { live } from './live.js';
import { closeAll, problemBox } from './dialog.js';
import { clock, plain } from './text.js';
import { login } from './views/login.js';
import { overview } from './views/overview.js';
import { transactions } from './views/transactions.js';
import { transaction } from './views/transaction.js';
import { letters } from './views/letters.js';
import { letter } from './views/letter.js';
import { connections } from './views/connections.js';
import { checkers } from './views/checkers.js';
import { configuration } from './views/configuration.js';

const AGAIN_MILLIS = 2000;

/** `route`: the path behind `#/`, `:` stands for a part; `under`: which entry of the menu is lit. */
const VIEWS = [
  { route: '', label: 'Overview', view: overview },
  { route: 'transactions', label: 'Transactions', view: transactions },
  { route: 'transactions/:', under: 'transactions', view: transaction },
  { route: 'dead-letters', label: 'Dead letters', view: letters },
  { route: 'dead-letters/:', under: 'dead-letters', view: letter },
  { route: 'connections', label: 'Connections', view: connections },
  { route: 'checkers', label: 'Checkers', view: checkers },
  { route: 'configuration', label: 'Configuration', view: configuration },
];

const main = document.getElementById('main');
const bar = document.getElementById('bar');
const notice = document.getElementById('notice');
let who = null;
let leaving = new AbortController();

function place() {
  const [path, search] = location.hash.replace(/^#\/?/, '').split(/\?(.*)/s);
  const parts = path.split('/');
  const found = VIEWS.find(({ route }) => {
    const wanted = route.split('/');
    return wanted.length === parts.length && wanted.every((part, index) => part === ':' ? parts[index] !== '' : part === parts[index]);
  });
  return { found, id: decoded(parts[1] ?? ''), query: new URLSearchParams(search ?? '') };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Shows what the address names. `arrive`: the focus goes there, for it was a way and not a first look. */
function show(arrive) {
  leaving.abort();
  leaving = new AbortController();
  closeAll();
  if (!who) return;
  const { found, id, query } = place();
  const focused = document.activeElement?.id;
  put(main);
  let title = 'Nothing here';
  if (found) {
    title = found.view(main, { id, query, signal: leaving.signal, who });
  } else {
    put(main, h('h1', { tabindex: -1 }, title), h('p', {}, 'This page does not exist. ', h('a', { href: '#/' }, 'To the overview')));
  }
  named(title);
  light(found);
  // Where a filter was changed, the focus stays with it.
  const same = focused ? main.querySelector(`#${CSS.escape(focused)}`) : null;
  if (arrive) (same ?? main.querySelector('h1')).focus({ preventScroll: Boolean(same) });
  if (arrive && !same) scrollTo(0, 0);
}

function named(title) {
  document.title = `${plain(title)} · Halfway`;
}

function light(found) {
  const lit = found?.under ?? found?.route;
  for (const link of bar.querySelectorAll('nav a')) {
    if (link.dataset.route === lit) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
}

function drawBar() {
  const items = VIEWS.filter(({ label }) => label).map(({ route, label }) =>
    h('li', {}, h('a', { href: `#/${route}`, data: { route } }, label)));
  const account = who.open
    ? h('span', { class: 'quiet', title: 'admin.open_on_loopback: who is on this machine needs no token' }, 'no token needed')
    : [h('span', {}, h('bdi', {}, who.name), h('span', { class: 'quiet' }, ` · ${who.role}`)), button('Log out', logOut)];
  put(bar, h('header', { class: 'bar' }, brand(), h('nav', { 'aria-label': 'Main' }, h('ul', {}, items)),
    h('div', { class: 'account' }, h('span', { id: 'pulse', class: 'pulse' }), themeButton(), account)));
}

const brand = () => h('a', { class: 'brand', href: '#/' }, h('img', { src: '/assets/icon.svg', alt: '', width: 18, height: 18 }), 'Halfway');

function themeButton() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  const toggle = button('', () => {
    root.dataset.theme = dark() ? 'light' : 'dark';
    localStorage.setItem('halfway-theme', root.dataset.theme);
    label();
  }, { class: 'theme' });
  const label = () => put(toggle, dark() ? 'Light' : 'Dark');
  label();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', label);
  return toggle;
}

const STATES = {
  off: '', connecting: 'Connecting', live: 'Live', paused: 'Paused', lost: 'Disconnected',
};

function drawPulse() {
  const pulse = document.getElementById('pulse');
  if (pulse) {
    pulse.className = `pulse is-${live.state}`;
    put(pulse, STATES[live.state]);
  }
  if (live.state === 'lost') {
    const since = live.heardAt ? ` What you see is of ${clock(live.heardAt)}.` : '';
    put(notice, h('p', { class: 'banner' }, h('b', {}, 'No news from the proxy.'), since, ' Trying again…'));
  } else if (live.state !== 'connecting') {
    put(notice);
  }
}

/** The stream does not tell why it ended; this request does. */
async function checkSession() {
  try {
    await get('/api/session');
  } catch (error) {
    if (error.status === 401) over();
  }
}

function over() {
  if (!who) return;
  ended('Your session is over. Log in again to go on where you were.');
}

async function logOut() {
  try {
    await remove('/api/session');
  } catch (error) {
    if (error.status !== 401) {
      put(notice, problemBox(error));
      return;
    }
  }
  location.hash = '#/';
  ended('You are logged out.');
}

function ended(sentence) {
  who = null;
  leaving.abort();
  closeAll();
  live.stop();
  put(notice);
  askForToken(sentence);
}

function askForToken(sentence) {
  put(bar, h('header', { class: 'bar' }, brand(), h('div', { class: 'account' }, themeButton())));
  named('Log in');
  login(main, sentence, start);
}

/** Finds out who looks, and shows the page; waits for a server that is still starting. */
async function start() {
  try {
    who = (await get('/api/session')).body;
  } catch (error) {
    if (error.status === 401) {
      askForToken();
      return;
    }
    if (!(error instanceof Problem)) throw error;
    put(main, h('h1', { tabindex: -1 }, 'Halfway'), problemBox(error, h('p', { class: 'quiet' }, 'This page tries again by itself.')));
    setTimeout(start, AGAIN_MILLIS);
    return;
  }
  drawBar();
  live.start();
  show(document.activeElement !== document.body);
}

document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener('hashchange', () => {
  show(true);
  say(document.title);
});
live.addEventListener('state', drawPulse);
live.addEventListener('failed', checkSession);
session.addEventListener('over', over);
setInterval(() => document.hidden || countTimes(), 1000);
start();
