// Takes the picture of the README.
//
// usage: picture.js URL FILE

import { tell } from './browser.js';

const [, , url, path] = process.argv;

await tell(url, async (house) => {
  const visit = await house.enter({ viewport: { width: 1280, height: 800 } });
  await visit.login('alice');
  await visit.see(visit.page.locator('.pulse').getByText('Live'));
  await visit.see(visit.page.locator('.line-committed[d*="L"]'));
  // Nothing is pointed at.
  await visit.page.mouse.move(0, 0);
  await visit.page.screenshot({ path, fullPage: true, caret: 'initial' });
  await visit.close();
});
