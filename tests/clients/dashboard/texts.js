// The dashboard's own texts: what it makes of numbers, times, and of what others wrote.
//
// usage: texts.js FILE    its text.js

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

const source = readFileSync(process.argv[2], 'utf8');
const text = await import(`data:text/javascript,${encodeURIComponent(source)}`);

const shown = (value, options) => text.pieces(value, options).map((piece) => (piece.hidden ? piece.text : `[${piece.text}]`)).join('');
assert.equal(shown('Bestellung-ü 注文 🙂'), '[Bestellung-ü 注文 🙂]');
assert.equal(shown('a\u202eb\u200b\u001b[2J\ud800'), '[a]⟨U+202E⟩[b]⟨U+200B⟩⟨U+001B⟩[[2J]⟨U+D800⟩');
assert.equal(shown('\u2028\u{e0041}\u3164\u00ad\u009b'), '⟨U+2028⟩⟨U+E0041⟩⟨U+3164⟩⟨U+00AD⟩⟨U+009B⟩');
assert.equal(shown('a\n\tb\r'), '[a]⟨U+000A⟩⟨U+0009⟩[b]⟨U+000D⟩');
assert.equal(shown('a\n\tb\r', { lines: true }), '[a\n\tb]⟨U+000D⟩');
assert.equal(text.plain('x\u2066'), 'x⟨U+2066⟩');

assert.equal(text.count('18446744073709551615'), '18\u202f446\u202f744\u202f073\u202f709\u202f551\u202f615');
assert.equal(text.count(null), '–');
assert.equal(text.counted('1', 'message'), '1 message');
assert.equal(text.counted(0, 'message'), '0 messages');
assert.equal(text.bytes('0'), '0 B');
assert.equal(text.bytes('1536'), '1.5 KiB');
assert.equal(text.bytes(String(10 * 2 ** 30)), '10 GiB');
assert.equal(text.rate(0.25), '0.25/s');
assert.equal(text.rate(1234.5), '1\u202f235/s');
assert.equal(text.seconds(0.0000125), '12.5 µs');
assert.equal(text.seconds(0.0093), '9.3 ms');
assert.equal(text.seconds(5), '5 s');
assert.equal(text.seconds(200), '3 min 20 s');
assert.equal(text.span(0.2), '0 s');
assert.equal(text.span(90_061), '1 d 1 h');
assert.equal(text.span(3600), '1 h');
assert.equal(text.distance('2026-01-01T00:00:00Z', Date.parse('2026-01-01T00:02:05Z')), '2 min 5 s ago');
assert.equal(text.distance('2026-01-01T00:00:10Z', Date.parse('2026-01-01T00:00:00Z')), 'in 10 s');

// Every digit stays, and every key, also those that come twice.
const json = '{"id":12345678901234567890,"id":1.10,"a":[],"b":{},"c":["x\\"]}",true,null],"d":{"e":-1e5}}';
const lines = ['{', '  "id": 12345678901234567890,', '  "id": 1.10,', '  "a": [],', '  "b": {},', '  "c": [', '    "x\\"]}",', '    true,', '    null', '  ],',
  '  "d": {', '    "e": -1e5', '  }', '}'];
assert.equal(text.indented(json), lines.join('\n'));
assert.equal(text.hex(Uint8Array.of(0, 65, 255)), `00000000  ${'00 41 ff'.padEnd(47)}  .A.`);
assert.equal(text.hex(new Uint8Array(17)).split('\n').length, 2);
