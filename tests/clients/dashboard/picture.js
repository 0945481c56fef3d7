// Waits for the charts to show traffic, and takes a picture of them.
//
// usage: picture.js URL FILE

import { tell } from './browser.js';

const [, , url, path] = process.argv;

await tell(url, async (house) => {
  const visit = await house.enter({ viewport: { width: 1280, height: 800 } });
  await visit.login('alice');
  await visit.see(visit.page.locator('.pulse').getByText('Live'));
  // One commit alone draws a peak over a flat line, which are two heights.
  await visit.until(() => {
    const points = document.querySelector('.plot .line-committed').getAttribute('d').matchAll(/[ML]\S+ ([\d.]+)/g);
    return new Set([...points].map(([, height]) => height)).size > 2;
  });
  // Nothing is pointed at.
  await visit.page.mouse.move(0, 0);
  await visit.page.screenshot({ path, fullPage: true, caret: 'initial' });
  await visit.close();
});
