// Lines over the last five minutes, as SVG.

import { h, s, put } from './dom.js';
import { clock } from './text.js';

const [WIDTH, HEIGHT] = [480, 170];
const [LEFT, RIGHT, TOP, BOTTOM] = [56, 8, 10, 22];
const SPAN_MILLIS = 300_000;

/**
 * A chart. `series`: `{ name, label, value(sample) }`, where `name` is a class of the style sheet and a value may be null;
 * `format` shows a value.
 */
export class Chart {
  #plot;
  #numbers = new Map();
  #title;
  #series;
  #format;
  #samples = [];
  #pointed = null;

  constructor(title, series, format) {
    [this.#title, this.#series, this.#format] = [title, series, format];
    this.#plot = s('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'plot', role: 'img' });
    const keys = series.map(({ name, label }) => {
      const number = h('b', {}, '–');
      this.#numbers.set(name, number);
      return h('li', {}, s('svg', { class: 'key', viewBox: '0 0 16 8', 'aria-hidden': 'true' },
        s('path', { class: `line ${name}`, d: 'M0 4H16' })), label, ' ', number);
    });
    this.when = h('span', { class: 'quiet' });
    this.element = h('figure', { class: 'chart' },
      h('figcaption', {}, h('h3', {}, title), this.when), this.#plot, h('ul', { class: 'keys' }, keys));
    this.#plot.addEventListener('pointermove', (event) => this.#point(event));
    this.#plot.addEventListener('pointerleave', () => this.#point(null));
  }

  show(samples) {
    this.#samples = samples.map((sample) => ({ ...sample, time: Date.parse(sample.at) }));
    this.#draw();
  }

  #point(event) {
    if (!event) {
      this.#pointed = null;
    } else {
      const box = this.#plot.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * WIDTH;
      this.#pointed = this.#end() - SPAN_MILLIS * (1 - (x - LEFT) / (WIDTH - LEFT - RIGHT));
    }
    this.#draw();
  }

  #end() {
    return this.#samples.at(-1)?.time ?? Date.now();
  }

  #draw() {
    const end = this.#end();
    const x = (time) => LEFT + (1 - (end - time) / SPAN_MILLIS) * (WIDTH - LEFT - RIGHT);
    const within = this.#samples.filter(({ time }) => time >= end - SPAN_MILLIS);
    const values = this.#series.flatMap(({ value }) => within.map(value)).filter((value) => value !== null);
    const top = ceiling(values.reduce((most, value) => Math.max(most, value), 0));
    const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
    const looked = this.#looked(within);

    const grid = [0, 0.5, 1].map((part) => [
      s('path', { class: 'grid', d: `M${LEFT} ${y(top * part)}H${WIDTH - RIGHT}` }),
      s('text', { class: 'axis', x: LEFT - 5, y: y(top * part) + 4.5, 'text-anchor': 'end' }, part === 0 ? '0' : this.#format(top * part)),
    ]);
    const minutes = [-5, -4, -3, -2, -1, 0].map((minute) => s('text', {
      class: 'axis', x: x(end + minute * 60_000), y: HEIGHT - 4, 'text-anchor': minute === 0 ? 'end' : 'middle',
    }, minute === 0 ? 'now' : `${minute} min`));
    const curves = this.#series.map(({ name, value }) => s('path', { class: `line ${name}`, d: curve(within, value, x, y) }));
    const cursor = this.#pointed !== null && looked ? s('path', { class: 'cursor', d: `M${x(looked.time)} ${TOP}V${HEIGHT - BOTTOM}` }) : null;
    put(this.#plot, grid, minutes, curves, cursor);
    this.#tell(looked);
  }

  #looked(within) {
    if (this.#pointed === null) return within.at(-1) ?? null;
    const nearer = (a, b) => (Math.abs(a.time - this.#pointed) <= Math.abs(b.time - this.#pointed) ? a : b);
    return within.length > 0 ? within.reduce(nearer) : null;
  }

  #tell(looked) {
    const shown = this.#series.map(({ name, label, value }) => {
      const number = looked ? value(looked) : null;
      const said = number === null ? '–' : this.#format(number);
      put(this.#numbers.get(name), said);
      return `${label} ${said}`;
    });
    put(this.when, this.#pointed !== null && looked ? clock(looked.at) : '');
    this.#plot.setAttribute('aria-label', `${this.#title}, the last five minutes. Now: ${shown.join(', ')}`);
  }
}

/** A round number that is at least as large. */
function ceiling(most) {
  if (most <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((round) => round >= most * 1.02) ?? 20 * power;
}

/** A path that is broken where there is no value, and where no news came. */
function curve(samples, value, x, y) {
  let path = '';
  let last = null;
  for (const sample of samples) {
    const number = value(sample);
    if (number !== null) {
      const near = last !== null && sample.time - last < 5000;
      const at = x(sample.time);
      // A point alone would not be seen without a length.
      path += near ? `L${at.toFixed(1)} ${y(number).toFixed(1)}` : `M${(at - 1.5).toFixed(1)} ${y(number).toFixed(1)}h1.5`;
    }
    last = number === null ? null : sample.time;
  }
  return path;
}
