// Texts, numbers and times as people read them. Nothing here touches the page.

// What would not be seen, or would move what is seen: control characters, marks of direction, zero-width ones.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
const HIDDEN_IN_LINES = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;

/** The name of a character that can't be shown as it is. */
const codePoint = (character) =>
  `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}⟩`;

/** Cuts a text into `{ text, hidden }`; what is hidden is already spelt out. `lines`: line ends and tabs stay. */
export function pieces(text, { lines = false } = {}) {
  const found = [];
  let from = 0;
  for (const match of text.matchAll(lines ? HIDDEN_IN_LINES : HIDDEN)) {
    if (match.index > from) found.push({ text: text.slice(from, match.index), hidden: false });
    found.push({ text: codePoint(match[0]), hidden: true });
    from = match.index + match[0].length;
  }
  if (from < text.length) found.push({ text: text.slice(from), hidden: false });
  return found;
}

/** The text for places that take no elements: attributes and the title. */
export const plain = (text) => text.replace(HIDDEN, codePoint);

const GROUPED = new Intl.NumberFormat('en', { useGrouping: 'always', maximumFractionDigits: 0 });

/** A count, which may come as a string because it may be larger than a number holds. */
export function count(value) {
  if (value === null || value === undefined) return '–';
  return GROUPED.format(typeof value === 'string' ? BigInt(value) : value).replaceAll(',', '\u202f');
}

/** "1 message", "2 messages". */
export const counted = (value, one, many = `${one}s`) => `${count(value)} ${String(value) === '1' ? one : many}`;

/** Three digits that count. */
function short(value) {
  if (value === 0) return '0';
  if (Math.abs(value) >= 100) return count(Math.round(value));
  return String(Number(value.toPrecision(value < 1 ? 2 : 3)));
}

export const bytes = (value) => {
  if (value === null || value === undefined) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let number = Number(value);
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) [number, unit] = [number / 1024, unit + 1];
  return `${short(number)} ${units[unit]}`;
};

export const rate = (value) => (value === null || value === undefined ? '–' : `${short(value)}/s`);

/** Seconds that something took. */
export function seconds(value) {
  if (value === null || value === undefined) return '–';
  if (value < 0.001) return `${short(value * 1e6)} µs`;
  if (value < 1) return `${short(value * 1e3)} ms`;
  return value < 120 ? `${short(value)} s` : span(value);
}

/** Seconds that passed, in its two largest units. */
export function span(value) {
  const whole = Math.max(0, Math.round(value));
  const parts = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];
  const first = parts.findIndex(([, size]) => whole >= size);
  if (first < 0) return '0 s';
  let rest = whole;
  const words = [];
  for (const [unit, size] of parts.slice(first, first + 2)) {
    const units = Math.floor(rest / size);
    rest -= units * size;
    if (units > 0) words.push(`${units} ${unit}`);
  }
  return words.join(' ');
}

/** How long ago, or how soon. */
export function distance(at, now = Date.now()) {
  const passed = (now - Date.parse(at)) / 1000;
  if (Math.abs(passed) < 1) return 'now';
  return passed >= 0 ? `${span(passed)} ago` : `in ${span(-passed)}`;
}

const two = (number) => String(number).padStart(2, '0');

/** The moment in the reader's own time zone. */
export function moment(at, { millis = false } = {}) {
  const time = new Date(at);
  const date = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
  const clock = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  return `${date} ${clock}${millis ? `.${String(time.getMilliseconds()).padStart(3, '0')}` : ''}`;
}

export const clock = (at) => moment(at).slice(11);

/** A state, or an event of a history, without its underscore. */
/** Why a checker gave no answer, where that it gave none is said already. */
export const bare = (reason) => reason.replace(/^no answer: /, '');

export const words = (name) => name.replaceAll('_', ' ');

/** JSON set in lines, its numbers and keys exactly as they came: parsing would round them and drop repeated keys. */
export function indented(json) {
  const tokens = json.match(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/gu) ?? [];
  let depth = 0;
  let out = '';
  const line = () => `\n${'  '.repeat(depth)}`;
  tokens.forEach((token, index) => {
    const [before, after] = [tokens[index - 1], tokens[index + 1]];
    const empty = (token === '{' && after === '}') || (token === '[' && after === ']');
    const closesEmpty = (token === '}' && before === '{') || (token === ']' && before === '[');
    if (token === '{' || token === '[') {
      depth += 1;
      out += empty ? token : token + line();
    } else if (token === '}' || token === ']') {
      depth = Math.max(0, depth - 1);
      out += closesEmpty ? token : line() + token;
    } else if (token === ',') {
      out += token + line();
    } else {
      out += token === ':' ? ': ' : token;
    }
  });
  return out;
}

/** A dump of bytes: offset, sixteen bytes, and what of them is visible ASCII. */
export function hex(data) {
  const lines = [];
  for (let at = 0; at < data.length; at += 16) {
    const row = [...data.subarray(at, at + 16)];
    const digits = row.map((byte) => byte.toString(16).padStart(2, '0')).join(' ').padEnd(47);
    const ascii = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : '.')).join('');
    lines.push(`${at.toString(16).padStart(8, '0')}  ${digits}  ${ascii}`);
  }
  return lines.join('\n');
}
