// An operator looks at dead letters, tries them again, and discards them.
//
// usage: letters.js URL GONE BACK    exchanges of two dead letters each; the second is there again

import assert from 'node:assert/strict';
import { tell } from './browser.js';

const [, , url, gone, back] = process.argv;

await tell(url, async (house) => {
  const visit = await house.enter();
  const { page } = visit;
  await visit.login('alice');
  await visit.see(page.getByText('4 dead letters to retry or discard'));
  await page.locator('.card').filter({ has: page.getByText('Dead letters', { exact: true }) }).click();
  await visit.see(page.getByText('4 dead letters, as of'));

  await page.getByLabel('Exchange', { exact: true }).fill(back);
  await visit.button('Filter').click();
  await visit.see(page.getByText('2 dead letters, as of'));
  await page.getByRole('rowheader').first().getByRole('link').click();
  await visit.see(page.getByText(/RabbitMQ refused it: 404/));
  await visit.see(page.getByText(/^dead-back/));
  const message = page.getByRole('article');
  await visit.see(message.locator('.body').getByText(new RegExp(`^${back} \\d$`)));
  await visit.see(message.getByRole('row', { name: /^delivery_mode octet 2$/ }));
  await visit.button('Retry…').click();
  await visit.confirm('the exchange is back', 'Retry');
  await visit.see(page.getByText('It is on its way to RabbitMQ again.'));
  await page.getByRole('link', { name: 'See its transaction' }).click();
  await visit.see(page.locator('.timeline').getByText(/the exchange is back/));
  await visit.see(page.locator('.timeline').getByText('Redelivered'));

  // One is left there: tried again as all that match the filter.
  await visit.go(`dead-letters?exchange=${back}`);
  await visit.see(page.getByText('1 dead letter, as of'));
  await visit.button('Decide about all that match…').click();
  await page.getByRole('radio', { name: /^Retry/ }).check();
  await visit.button('Count them').click();
  await visit.see(visit.dialog().getByText('1 dead letter matches.'));
  await visit.confirmAll('this one too', 'Retry 1 dead letter', 1);
  await visit.see(page.getByText('No dead letter matches this filter.'));

  await visit.go(`dead-letters?exchange=${gone}`);
  await visit.see(page.getByText('2 dead letters, as of'));
  await page.getByRole('rowheader').first().getByRole('link').click();
  await visit.button('Discard…').click();
  await visit.confirm('nobody wants it', 'Discard');
  await visit.see(page.getByText('It is discarded.'));
  await page.getByRole('link', { name: 'all dead letters' }).click();
  await visit.see(page.getByText('1 dead letter, as of'));

  await page.getByRole('checkbox', { name: 'Choose all on this page' }).check();
  await visit.button('Discard').click();
  await page.getByRole('radio').check();
  await visit.button('Count them').click();
  await visit.confirmAll('nor this one', 'Discard 1 dead letter', 1);
  await visit.see(page.getByText('There is no dead letter.'));
  assert.deepEqual((await house.ask('GET', '/api/dead-letters')).items, []);
  await visit.go('');
  await visit.see(page.getByText('All is well.'));
  await visit.close();
});
