// Three incidents, from the first sight of the overview until it says that all is well: a checker that is dead, a relay that
// RabbitMQ does not let in, a disk that is full. And a RabbitMQ that is away.
//
// usage: incidents.js URL AWAY    A line on standard output asks for something; a line on standard input says that it is done.
// AWAY is a proxy without RabbitMQ.

import { createInterface } from 'node:readline';
import { tell } from './browser.js';

const [, , url, away] = process.argv;
const lines = createInterface({ input: process.stdin });
const answers = lines[Symbol.asyncIterator]();

async function have(wish) {
  console.log(wish);
  await answers.next();
}

await tell(url, async (house) => {
  const visit = await house.enter();
  const { page } = visit;
  await visit.login('alice');

  const silent = page.getByRole('link', { name: 'A checker does not answer' });
  await visit.see(silent);
  await visit.see(page.getByText(/^orders: /));
  await silent.click();
  await visit.see(page.getByText('breaker open'));
  await page.getByRole('link', { name: 'stays in doubt' }).click();
  await visit.see(page.getByText('3 transactions, as of'));
  await page.getByRole('link', { name: 'order-1' }).click();
  await visit.see(page.locator('.timeline').getByText(/no answer: .* \(the same again is not listed\)/));
  await have('start the checker');
  await visit.button('Check now').click();
  await visit.see(page.locator('.timeline').getByText('Committed by checker orders'));
  await visit.go('');
  await visit.see(page.getByText('All is well. Nothing waits for a person.'));

  await have('lock the relay out');
  await visit.see(page.getByText('Committed messages wait in the store'));
  await visit.see(page.getByText('committed, waiting'));
  await have('let the relay in');
  await visit.see(page.getByText('All is well.'));

  await have('fill the disk');
  await visit.see(page.getByText(/The store (can’t write|failed to write)/));
  await visit.see(page.getByText('Make room on its disk'));
  await page.getByRole('link', { name: /^The store (can’t write|failed)/ }).click();
  await visit.see(page.getByText('store.url'));
  await visit.go('');
  await have('make room');
  await visit.gone(page.getByText('The store can’t write'));
  await visit.close();
});

await tell(away, async (house) => {
  const visit = await house.enter();
  const { page } = visit;
  await visit.see(page.getByText('RabbitMQ can’t be reached: no client can connect'));
  await visit.see(page.getByText(/Connection refused/));
  await visit.see(page.locator('.card').filter({ hasText: 'RabbitMQ' }).getByText('not ready'));
  await visit.close();
});
lines.close();
