// What the server tells every second, as long as the page is looked at.

const QUIET_MILLIS_MAX = 6000;
const AGAIN_MILLIS = 3000;
const SAMPLES_MAX = 300;

/**
 * Events: `overview` when there is news; `failed` when they could not be had, or no more; `state` when `state` has changed:
 * `off`, `connecting`, `live`, `paused` (the page is hidden) or `lost`.
 */
class Live extends EventTarget {
  state = 'off';
  overview = null;
  samples = [];
  /** When the last news came; null before the first. */
  heardAt = null;
  #source = null;
  #timer = null;
  #wanted = false;

  constructor() {
    super();
    document.addEventListener('visibilitychange', () => this.#wanted && this.#follow());
  }

  start() {
    this.#wanted = true;
    this.#follow();
  }

  stop() {
    this.#wanted = false;
    this.#close();
    [this.overview, this.samples, this.heardAt] = [null, [], null];
    this.#become('off');
  }

  #follow() {
    this.#close();
    if (document.hidden) {
      this.#become('paused');
      return;
    }
    if (this.state !== 'lost') this.#become('connecting');
    const source = new EventSource('/api/events');
    this.#source = source;
    this.#expect(QUIET_MILLIS_MAX);
    source.addEventListener('history', (event) => {
      this.samples = JSON.parse(event.data).samples;
    });
    source.addEventListener('overview', (event) => this.#hear(JSON.parse(event.data)));
    source.addEventListener('error', () => {
      // A refusal or a lost connection; a browser tries again by itself after the latter only.
      this.#close();
      this.#become('lost');
      this.dispatchEvent(new Event('failed'));
      this.#expect(AGAIN_MILLIS);
    });
  }

  /** A connection may be lost without a word. */
  #expect(millis) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#become('lost');
      this.#follow();
    }, millis);
  }

  #hear(overview) {
    this.#expect(QUIET_MILLIS_MAX);
    this.overview = overview;
    this.heardAt = new Date();
    if (overview.sample) this.samples = [...this.samples, overview.sample].slice(-SAMPLES_MAX);
    this.#become('live');
    this.dispatchEvent(new Event('overview'));
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new Event('state'));
  }
}

export const live = new Live();
