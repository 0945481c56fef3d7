// Every view, light and dark, wide and narrow: accessible by the rules of axe, not wider than the window; hostile texts are
// shown, and do nothing. Pictures go to a folder.
//
// usage: looks.js URL FOLDER LETTER

import assert from 'node:assert/strict';
import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tell } from './browser.js';

const [, , url, folder, letter] = process.argv;
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
mkdirSync(folder, { recursive: true });

await tell(url, async (house) => {
  const { items } = await house.ask('GET', '/api/transactions?limit=1000');
  const hostile = items.find(({ name }) => name?.includes('<img'));
  const views = [
    ['overview', '', (page) => page.locator('.card').first()],
    ['transactions', 'transactions', (page) => page.getByText(/transactions?, as of/)],
    ['transactions-none', 'transactions?name=nobody', (page) => page.getByText('No transaction matches this filter.')],
    ['transaction', `transactions/${hostile.id}`, (page) => page.locator('.body').first()],
    ['dead-letters', 'dead-letters', (page) => page.getByText(/dead letters?, as of/)],
    ['dead-letter', `dead-letters/${letter}`, (page) => page.getByText(/RabbitMQ refused it/)],
    ['connections', 'connections', (page) => page.getByRole('row').nth(1)],
    ['checkers', 'checkers', (page) => page.getByText('Knows about')],
    ['configuration', 'configuration', (page) => page.getByText('store.max_size')],
    ['nowhere', 'nowhere', (page) => page.getByText('This page does not exist.')],
  ];
  for (const colorScheme of ['light', 'dark']) {
    const visit = await house.enter({ colorScheme });
    await visit.see(visit.heading('Log in'));
    await look(visit, `login-${colorScheme}`);
    await visit.login('alice');
    for (const [name, route, sign] of views) {
      await visit.go(route);
      await visit.see(sign(visit.page));
      await look(visit, `${name}-${colorScheme}`);
    }
    await dialogs(visit, hostile, colorScheme);
    await visit.close();
  }

  const narrow = await house.enter({ viewport: { width: 400, height: 800 } });
  await narrow.fits();
  await narrow.login('alice');
  for (const [name, route, sign] of views) {
    await narrow.go(route);
    await narrow.see(sign(narrow.page));
    await narrow.fits();
    await look(narrow, `${name}-narrow`);
  }
  await dialogs(narrow, hostile, 'narrow');
  await narrow.close();
  await isInert(house, hostile);
  await chooses(house);
});

/** Judges what is shown by the rules, and keeps a picture. */
async function look({ page }, name) {
  // What counts seconds would make every picture another one; the caret too.
  await page.screenshot({ path: `${folder}/${name}.png`, fullPage: true, caret: 'initial' });
  await page.evaluate(AXE);
  const { violations } = await page.evaluate((values) => axe.run(document, { runOnly: { type: 'tag', values } }), RULES);
  const found = violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html).join(' ')}`);
  assert.deepEqual(found, [], name);
}

async function dialogs(visit, { id }, name) {
  await visit.go(`transactions/${id}`);
  await visit.button('Roll back…').click();
  await look(visit, `dialog-${name}`);
  await visit.fits();
  await visit.button('Cancel').click();
  await visit.go('transactions?state=in_doubt');
  await visit.button('Decide about all that match…').click();
  await visit.page.getByRole('radio', { name: /^Roll back/ }).check();
  await visit.button('Count them').click();
  await visit.see(visit.dialog().getByText(/match(es)?\./));
  await look(visit, `bulk-${name}`);
  await visit.fits();
  await visit.button('Cancel').click();
}

/** Name, header, body and reason hold markup, scripts, escapes and marks of direction. */
async function isInert(house, { id, name }) {
  assert.ok(name.includes('\u202e') && name.includes('\u001b'), 'the API tells the name as it is');
  const visit = await house.enter();
  const { page } = visit;
  await visit.login('alice');
  await visit.go(`transactions/${id}`);
  await visit.see(page.locator('.body'));
  const shown = await page.locator('main').evaluate((main) => main.textContent);
  for (const expected of ['<img src=x onerror="document.title=1">⟨U+202E⟩gpj⟨U+001B⟩[2J', '<script>alert(2)</script>⟨U+200B⟩', '<b>bold</b>⟨U+2066⟩']) {
    assert.ok(shown.includes(expected), `${expected} is not in ${shown}`);
  }
  const loose = await page.evaluate(() => document.body.textContent.match(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069]/));
  assert.equal(loose, null);
  assert.equal(await page.locator('main img, main script, main b:text-is("bold")').count(), 0);
  await page.getByRole('button', { name: 'Hex' }).first().click();
  await visit.see(page.locator('.body').getByText(/^00000000 {2}3c 73 63/));

  // A reason comes back the same way, and finds its way into the list.
  await visit.button('Commit…').click();
  await visit.confirm('<script>alert(3)</script>\u202e', /^Commit/);
  await visit.gone(visit.dialog());
  await visit.see(page.locator('.why').getByText('<script>alert(3)</script>⟨U+202E⟩'));
  await visit.go(`transactions?name=${encodeURIComponent(name)}`);
  await visit.see(page.getByText('1 transaction, as of'));
  assert.equal(await page.getByLabel('Name', { exact: true }).inputValue(), name, 'a filter keeps what is hidden');
  assert.match(await page.title(), /^Transactions/);
  await visit.close();
}

/** The colours that somebody has chosen stay chosen. */
async function chooses(house) {
  const visit = await house.enter();
  const background = () => visit.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await visit.button('Dark').click();
  const dark = await background();
  assert.notEqual(light, dark);
  await visit.page.reload();
  await visit.see(visit.button('Light'));
  assert.equal(await background(), dark);
  await visit.close();
}
