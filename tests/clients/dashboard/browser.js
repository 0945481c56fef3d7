// A headless Chromium before a dashboard, and what no story may see: a request to another host, a violation of the
// content security policy, a script that failed, a dialog of the browser's own.

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

// A browser beside brokers and other tests on two cores may have to wait for a while.
const PATIENCE_MILLIS = 120_000;
const STORY_MILLIS_MAX = 900_000;
// The rest keeps Chromium from calling home.
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update',
  '--disable-sync', '--disable-dev-shm-usage',
];

/** The tokens of the stage, by the names of their files. */
const TOKENS = { alice: 'token-of-alice', bob: 'token-of-bob', victor: 'token-of-victor' };

/** Runs `story` with a `Visit` to the dashboard at `url`; fails if it does, or if anything went wrong on the way. */
export async function tell(url, story) {
  setTimeout(() => {
    console.error('the story takes too long');
    process.exit(1);
  }, STORY_MILLIS_MAX).unref();
  const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: FLAGS });
  try {
    await story(new House(browser, url));
  } catch (error) {
    for (const page of browser.contexts().flatMap((context) => context.pages())) {
      console.error(`${page.url()} shows:\n${await page.locator('body').innerText()}\n`);
    }
    throw error;
  } finally {
    await browser.close();
  }
}

class House {
  constructor(browser, url) {
    this.browser = browser;
    this.url = url;
  }

  /** A browser of somebody of their own, without a session. What it sees is checked by `close`. */
  async enter(options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: 'light', reducedMotion: 'reduce', ...options });
    context.setDefaultTimeout(PATIENCE_MILLIS);
    const page = await context.newPage();
    const visit = new Visit(context, page, this.url);
    await page.goto(this.url);
    return visit;
  }

  /** Asks the API itself, as another operator does. */
  async ask(method, path, body, who = 'bob') {
    const headers = { authorization: `Bearer ${TOKENS[who]}`, 'content-type': 'application/json' };
    const response = await fetch(this.url + path, { method, headers, body: body && JSON.stringify(body) });
    const text = await response.text();
    assert.ok(response.ok, `${method} ${path}: ${response.status} ${text}`);
    return text === '' ? null : JSON.parse(text);
  }

  /** The only transaction of this name. */
  async named(name) {
    const { items } = await this.ask('GET', `/api/transactions?name=${encodeURIComponent(name)}`);
    assert.equal(items.length, 1, `${name}: ${JSON.stringify(items)}`);
    return items[0];
  }
}

class Visit {
  #wrong = [];

  constructor(context, page, url) {
    [this.context, this.page, this.url] = [context, page, url];
    context.on('request', (request) => {
      if (new URL(request.url()).origin !== url) this.#wrong.push(`a request to ${request.url()}`);
    });
    page.on('pageerror', (error) => this.#wrong.push(`a script failed: ${error.stack}`));
    page.on('dialog', (dialog) => {
      this.#wrong.push(`a dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    page.on('console', (message) => {
      // Chromium writes this for each answer that is an error; the page shows those, and the stories look at it.
      const answered = message.text().startsWith('Failed to load resource');
      if (['error', 'warning'].includes(message.type()) && !answered) this.#wrong.push(`in the console: ${message.text()}`);
    });
    page.addInitScript(() => {
      addEventListener('securitypolicyviolation', (event) => console.error(`violates ${event.violatedDirective}: ${event.blockedURI}`));
    });
  }

  async login(name) {
    await this.page.getByLabel('Token', { exact: true }).fill(TOKENS[name]);
    await this.page.getByRole('button', { name: 'Log in' }).click();
    await this.see(this.page.locator('.account').getByText(name, { exact: true }));
  }

  /** Goes to a view by its address. */
  async go(route) {
    await this.page.evaluate((to) => {
      location.hash = to;
    }, `#/${route}`);
  }

  async see(locator) {
    await locator.first().waitFor({ state: 'visible' });
    return locator;
  }

  async gone(locator) {
    await locator.first().waitFor({ state: 'hidden' });
  }

  heading(name) {
    return this.page.getByRole('heading', { level: 1, name });
  }

  button(name) {
    return this.page.getByRole('button', { name, exact: true });
  }

  dialog() {
    return this.page.getByRole('dialog');
  }

  /** Waits until `condition` of the page holds. */
  async until(condition, argument) {
    await this.page.waitForFunction(condition, argument);
  }

  /** Types a reason into the open dialog, and confirms with the button of this name. */
  async confirm(reason, name) {
    await this.dialog().getByLabel('Reason').fill(reason);
    await this.dialog().getByRole('button', { name }).click();
  }

  /** Confirms for all of the many that the open dialog has counted, and sees them done. */
  async confirmAll(reason, name, count) {
    await this.dialog().getByRole('checkbox').check();
    await this.confirm(reason, name);
    await this.see(this.dialog().getByText(`Done: ${count} of ${count} done`));
    await this.button('Close').click();
  }

  /** What stands on the page does not scroll sideways. */
  async fits() {
    const [wide, room] = await this.page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(wide <= room, `${this.page.url()} is ${wide} wide in a window of ${room}`);
  }

  async close() {
    assert.deepEqual(this.#wrong, []);
    await this.context.close();
  }
}
