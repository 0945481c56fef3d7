// The proxy goes away under an open page and comes back: the page says so, and goes on.
//
// usage: outage.js URL    A line on standard output asks for something (`kill`, `resume`); a line on standard input says that
// it is done.

import assert from 'node:assert/strict';
import { createInterface } from 'node:readline';
import { tell } from './browser.js';

const lines = createInterface({ input: process.stdin });
const answers = lines[Symbol.asyncIterator]();

async function have(wish) {
  console.log(wish);
  await answers.next();
}

await tell(process.argv[2], async (house) => {
  const visit = await house.enter();
  const { page } = visit;
  await visit.login('alice');
  await visit.see(page.locator('.pulse').getByText('Live'));
  await have('kill');
  await visit.see(page.getByText('No news from the proxy.'));
  await visit.see(page.locator('.pulse').getByText('Disconnected'));
  await visit.go('transactions?name=kept-1');
  await visit.see(page.getByRole('alert').getByText(/The proxy does not answer/));
  await have('resume');
  // It has forgotten its sessions.
  await visit.see(page.getByText('Your session is over. Log in again to go on where you were.'));
  assert.match(page.url(), /#\/transactions\?name=kept-1$/);
  await visit.login('alice');
  await visit.see(page.getByRole('link', { name: 'kept-1' }));
  await visit.see(page.locator('.pulse').getByText('Live'));
  assert.equal(await page.getByText('No news from the proxy.').count(), 0);

  // The overview asks for nothing but news, and notices all the same.
  await visit.go('');
  await visit.see(visit.heading('Overview'));
  await have('kill');
  await visit.see(page.getByText('No news from the proxy.'));
  await have('resume');
  await visit.see(visit.heading('Log in'));
  await visit.login('alice');
  await visit.see(visit.heading('Overview'));
  await visit.go('transactions?name=kept-1');

  // A server that still starts says 503; the page waits for it.
  const starting = { status: 503, contentType: 'application/problem+json', body: '{"title":"Service Unavailable","detail":"the proxy starts"}' };
  await page.route('**/api/session', (route) => route.fulfill(starting));
  await page.reload();
  await visit.see(page.getByRole('alert').getByText('the proxy starts'));
  await page.unroute('**/api/session');
  await visit.see(page.getByRole('link', { name: 'kept-1' }));
  await visit.close();
});
lines.close();
