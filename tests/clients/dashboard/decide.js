// An operator finds transactions and decides them: with the mouse, with the keyboard alone, too late, and by the hundred; a
// viewer only looks.
//
// usage: decide.js URL PEER    the address of a client that is there to be sent home

import assert from 'node:assert/strict';
import { tell } from './browser.js';

const KEYS_MAX = 80;
const [, , url, peer] = process.argv;

await tell(url, async (house) => {
  const visit = await house.enter();
  await logsIn(visit);
  await seesNewsAsItComes(house, visit);
  await commitsWithTheMouse(house, visit);
  await rollsBackWithTheKeyboard(house, visit);
  await comesTooLate(house, visit);
  await hasItsCheckerAsked(visit);
  await decidesWhatItChose(house, visit);
  await decidesAllThatMatch(house, visit);
  await closesAConnection(visit);
  await logsOut(visit);
  await visit.close();
  await onlyLooks(house);
});

async function logsIn(visit) {
  const { page } = visit;
  await visit.see(visit.heading('Log in'));
  assert.ok(await page.getByLabel('Token', { exact: true }).evaluate((field) => field === document.activeElement), 'the field has the focus');
  await page.getByLabel('Token', { exact: true }).fill('wrong');
  await visit.button('Log in').click();
  await visit.see(page.getByRole('alert').getByText('This token is not one that counts.'));
  await visit.login('alice');
  await visit.see(visit.heading('Overview'));
}

function card(page, label) {
  return page.locator('.card').filter({ has: page.getByText(label, { exact: true }) });
}

async function seesNewsAsItComes(house, visit) {
  const { page } = visit;
  await visit.see(page.locator('.pulse').getByText('Live'));
  const figure = card(page, 'In doubt').locator('.figure');
  const before = Number(await figure.textContent());
  assert.ok(before > 250, `${before} in doubt`);
  const { id } = await house.named('news-1');
  await house.ask('POST', `/api/transactions/${id}/rollback`, { reason: 'as news' });
  await visit.until((fewer) => document.querySelector('.card .figure').textContent === String(fewer), before - 1);
  await visit.see(page.getByRole('img', { name: /Transactions by outcome, .* in doubt/ }));

  // A page that nobody looks at asks for nothing.
  const hide = (hidden) => page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { configurable: true, get: () => value });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
  const ended = page.waitForEvent('requestfailed', (request) => request.url().endsWith('/api/events'));
  await hide(true);
  await ended;
  await visit.see(page.locator('.pulse').getByText('Paused'));
  await hide(false);
  await visit.see(page.locator('.pulse').getByText('Live'));
}

async function commitsWithTheMouse(house, visit) {
  const { page } = visit;
  await card(page, 'In doubt').click();
  await visit.see(visit.heading('Transactions'));
  assert.match(page.url(), /#\/transactions\?state=in_doubt$/);
  await page.getByLabel('Name', { exact: true }).fill('mouse-*');
  await visit.button('Filter').click();
  await visit.until(() => location.hash === '#/transactions?state=in_doubt&name=mouse-*');
  await visit.see(page.getByText('1 transaction, as of'));
  // The filter stands in the address, and so outlives the page.
  await page.reload();
  await visit.see(page.getByText('1 transaction, as of'));
  await page.getByRole('link', { name: 'mouse-1' }).click();
  await visit.see(visit.heading('mouse-1 in doubt'));
  await visit.see(page.getByText('Parked: its messages are kept, and invisible'));
  await visit.see(page.getByText('order 1', { exact: true }));

  await visit.button('Commit…').click();
  await visit.dialog().getByRole('button', { name: 'Commit 2 messages' }).click();
  assert.ok(await visit.dialog().getByLabel('Reason').evaluate((field) => !field.validity.valid), 'a reason is needed');
  await visit.confirm('paid: seen in the shop', 'Commit 2 messages');
  await visit.gone(visit.dialog());
  await visit.see(visit.heading('mouse-1 delivered'));
  await visit.see(page.getByText('paid: seen in the shop'));
  await visit.see(page.locator('.timeline').getByText('operator alice'));
  assert.equal(await visit.button('Commit…').count(), 0);
  assert.equal((await house.named('mouse-1')).decided_by, 'operator alice');
}

/** Goes on with Tab until what has the focus bears this name; each stop on the way is visible. */
async function tabTo(page, name) {
  for (let keys = 0; keys < KEYS_MAX; keys += 1) {
    await page.keyboard.press('Tab');
    const stop = await page.evaluate(() => {
      const element = document.activeElement;
      const label = element.labels?.[0]?.textContent ?? element.getAttribute('aria-label') ?? element.textContent;
      return { label: label.trim(), outlined: getComputedStyle(element).outlineStyle !== 'none', at: element.tagName };
    });
    assert.ok(stop.at === 'BODY' || stop.outlined, `the focus is not seen on ${stop.at} ${stop.label}`);
    if (stop.label === name) return;
  }
  assert.fail(`${name} is not reached with ${KEYS_MAX} keys`);
}

async function rollsBackWithTheKeyboard(house, visit) {
  const { page } = visit;
  await page.goto(`${visit.url}/#/`);
  await page.reload();
  await visit.see(visit.heading('Overview'));
  await tabTo(page, 'Skip to the content');
  await page.keyboard.press('Enter');
  await visit.until(() => document.activeElement.id === 'main');
  await page.reload();
  await visit.see(visit.heading('Overview'));
  await tabTo(page, 'Transactions');
  await page.keyboard.press('Enter');
  await visit.until(() => document.activeElement.textContent === 'Transactions' && document.activeElement.tagName === 'H1');
  await tabTo(page, 'Name');
  await page.keyboard.type('keys-*');
  await page.keyboard.press('Enter');
  await visit.see(page.getByText('1 transaction, as of'));
  await tabTo(page, 'keys-1');
  await page.keyboard.press('Enter');
  await visit.see(visit.heading('keys-1 in doubt'));
  await tabTo(page, 'Roll back…');
  await page.keyboard.press('Enter');
  await visit.see(visit.dialog());
  await page.keyboard.press('Escape');
  await visit.gone(visit.dialog());
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Roll back…', 'the focus is back where it was');
  await page.keyboard.press('Enter');
  // The reason has the focus.
  await page.keyboard.type('never paid');
  await tabTo(page, 'Roll back 1 message');
  await page.keyboard.press('Enter');
  await visit.see(visit.heading('keys-1 rolled back'));
  const { id } = await house.named('keys-1');
  const { history } = await house.ask('GET', `/api/transactions/${id}`);
  assert.ok(history.some(({ actor, reason }) => actor === 'operator alice' && reason === 'never paid'), JSON.stringify(history));
}

async function comesTooLate(house, visit) {
  const { page } = visit;
  const { id } = await house.named('late-1');
  await visit.go(`transactions/${id}`);
  await visit.see(visit.heading('late-1 in doubt'));
  await visit.button('Roll back…').click();
  await house.ask('POST', `/api/transactions/${id}/commit`, { reason: 'faster' });
  await visit.confirm('slower', /^Roll back/);
  await visit.see(visit.dialog().getByRole('alert').getByText(/Already decided|It has changed meanwhile/));
  await visit.see(visit.dialog().getByText('Nothing was done.'));
  await visit.button('Show it as it is now').click();
  await visit.see(visit.heading(/late-1 (committed|delivered)/));
  await visit.see(page.locator('.timeline').getByText('operator bob'));
  assert.equal(await page.locator('.timeline').getByText('slower').count(), 0);
}

async function hasItsCheckerAsked(visit) {
  const { page } = visit;
  await visit.go('transactions?name=asked-*');
  await page.getByRole('link', { name: 'asked-1' }).click();
  await visit.button('Check now').click();
  await visit.see(page.locator('.timeline').getByText('checker orders'));
  await visit.see(page.locator('.timeline').getByText(/unknown/));
}

async function decidesWhatItChose(house, visit) {
  const { page } = visit;
  await visit.go('transactions?name=pick-*');
  await visit.see(page.getByText('3 transactions, as of'));
  await page.getByRole('checkbox', { name: 'Choose pick-1' }).check();
  await page.getByRole('checkbox', { name: 'Choose pick-3' }).check();
  await visit.see(page.getByText('2 transactions chosen'));
  await visit.button('Roll back').click();
  await page.getByRole('radio').check();
  await visit.button('Count them').click();
  await visit.confirmAll('picked', 'Roll back 2 transactions', 2);
  await visit.until(() => document.querySelectorAll('tbody .is-rolled-back').length === 2);
  assert.equal((await house.named('pick-2')).state, 'in_doubt');
}

async function decidesAllThatMatch(house, visit) {
  const { page } = visit;
  await visit.go('transactions?state=in_doubt&name=bulk-*');
  await visit.see(page.getByRole('link', { name: 'Next page »' }));
  await visit.button('Decide about all that match…').click();
  await visit.see(visit.dialog().getByText('bulk-*'));
  await page.getByRole('radio', { name: /^Commit/ }).check();
  await visit.button('Count them').click();
  await visit.see(visit.dialog().getByText('250 transactions match.'));
  assert.equal((await house.ask('GET', '/api/transactions?state=in_doubt&name=bulk-*')).items.length > 0, true, 'it only counted');
  await visit.dialog().getByLabel('Reason').fill('all of them are paid');
  const go = visit.dialog().getByRole('button', { name: 'Commit 250 transactions' });
  await go.click();
  assert.ok(await visit.dialog().getByRole('checkbox').evaluate((box) => !box.validity.valid), 'a yes is needed');
  await visit.dialog().getByRole('checkbox').check();
  await go.click();
  await visit.see(visit.dialog().getByText('Done: 250 of 250 done'));
  await visit.button('Close').click();
  await visit.see(page.getByText('No transaction matches this filter.'));
  assert.equal((await house.ask('GET', '/api/transactions?state=in_doubt&name=bulk-*')).items.length, 0);
}

async function closesAConnection(visit) {
  const { page } = visit;
  await page.getByRole('link', { name: 'Connections' }).click();
  const row = page.getByRole('row').filter({ hasText: peer });
  await row.getByRole('button', { name: /^Close the connection/ }).click();
  await visit.confirm('it leaks channels', 'Close it');
  await visit.gone(visit.dialog());
  await visit.gone(row);
}

async function logsOut(visit) {
  const { page } = visit;
  await visit.button('Log out').click();
  await visit.see(page.getByText('You are logged out.'));
  const answer = await page.request.get(`${visit.url}/api/overview`);
  assert.equal(answer.status(), 401);
}

async function onlyLooks(house) {
  const visit = await house.enter();
  const { page } = visit;
  await visit.login('victor');
  const { id } = await house.named('pick-2');
  await visit.go(`transactions/${id}`);
  await visit.see(page.getByText('Your token has the role viewer: you can look, and not decide.'));
  await visit.see(page.getByText('Facts'));
  for (const name of ['Commit…', 'Roll back…', 'Check now']) assert.equal(await visit.button(name).count(), 0, name);
  await visit.go('transactions?name=pick-*');
  await visit.see(page.getByText('3 transactions, as of'));
  assert.equal(await page.getByRole('checkbox').count(), 0);
  assert.equal(await visit.button('Decide about all that match…').count(), 0);
  await visit.close();
}
