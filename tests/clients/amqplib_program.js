// What a Node service does with RabbitMQ, printed as lines that must be the same directly and through the proxy.
//
// usage: amqplib_program.js PORT

import amqp from 'amqplib';
import defs from './node_modules/amqplib/lib/defs.js';

const port = process.argv[2];
const say = (...words) => console.log(...words.map((word) => JSON.stringify(word)));
const withoutHalfId = (headers) =>
  Object.fromEntries(Object.entries(headers).filter(([key]) => !key.startsWith('x-half-')));

const connection = await amqp.connect(`amqp://guest:guest@127.0.0.1:${port}?heartbeat=2&frameMax=8192`, {
  clientProperties: { connection_name: 'amqplib' },
});
connection.on('error', () => {});
say('connected', connection.connection.serverProperties.product);

// Confirms, returns, a consumer with prefetch.
const channel = await connection.createConfirmChannel();
const queue = 'amqplib-queue';
await channel.assertQueue(queue, { durable: true });
await channel.purgeQueue(queue);
const options = {
  contentType: 'text/plain',
  headers: { text: 'ä', number: 7, fraction: 0.5, list: [1, 'two', null], table: { deep: true } },
  persistent: true,
  priority: 3,
  correlationId: 'correlation',
  expiration: '60000',
  messageId: 'message',
  timestamp: 1700000000,
  type: 'kind',
  appId: 'amqplib',
};
channel.sendToQueue(queue, Buffer.from('confirmed'), options);
await channel.waitForConfirms();
const got = await channel.get(queue);
say('got', got.content.toString(), got.properties);
channel.ack(got);
const returned = new Promise((resolve) => channel.once('return', resolve));
channel.sendToQueue('amqplib-nowhere', Buffer.from('unroutable'), { mandatory: true });
say('returned', (await returned).fields);
await channel.waitForConfirms();
await channel.prefetch(5);
const seen = [];
const all = new Promise((resolve) => {
  channel.consume(queue, (message) => {
    seen.push(Number(message.content.toString()));
    channel.ack(message);
    if (seen.length === 50) resolve();
  });
});
for (let number = 0; number < 50; number += 1) channel.sendToQueue(queue, Buffer.from(String(number)));
await all;
say('consumed', seen);
await channel.waitForConfirms();
await channel.close();

// Large and empty bodies.
const plain = await connection.createChannel();
const large = Buffer.alloc(5_000_000, 'abc');
plain.sendToQueue(queue, large);
plain.sendToQueue(queue, Buffer.alloc(0));
say('large', (await plain.get(queue, { noAck: true })).content.equals(large));
say('empty', (await plain.get(queue, { noAck: true })).content.length);

// Direct reply-to.
const server = await connection.createChannel();
await server.assertQueue('amqplib-rpc', { durable: false, autoDelete: true });
await server.consume(
  'amqplib-rpc',
  (message) => server.sendToQueue(message.properties.replyTo, Buffer.from(`${message.content} answered`)),
  { noAck: true },
);
const answered = new Promise((resolve) => plain.consume('amq.rabbitmq.reply-to', resolve, { noAck: true }));
plain.sendToQueue('amqplib-rpc', Buffer.from('question'), { replyTo: 'amq.rabbitmq.reply-to' });
say('rpc', (await answered).content.toString());

// Transactions: amqplib has no functions for them, but its channels can call any method.
const transactional = await connection.createChannel();
const call = (name) => transactional.rpc(defs[name], {}, defs[`${name}Ok`]);
await call('TxSelect');
transactional.sendToQueue(queue, Buffer.from('committed'), options);
say('before the commit', await plain.get(queue));
await call('TxCommit');
const committed = await plain.get(queue, { noAck: true });
say('after the commit', committed.content.toString(), withoutHalfId(committed.properties.headers));
transactional.sendToQueue(queue, Buffer.from('rolled back'));
await call('TxRollback');
await call('TxCommit');
say('after the rollback', await plain.get(queue));

// Errors.
const failing = await connection.createChannel();
const failed = new Promise((resolve) => failing.on('error', resolve));
failing.checkQueue('amqplib-missing').catch(() => {});
say('closed', (await failed).message);

// Idle over several heartbeats.
await new Promise((resolve) => setTimeout(resolve, 5000));
await plain.deleteQueue(queue);
await connection.close();
for (const url of [`amqp://guest:wrong@127.0.0.1:${port}`, `amqp://guest:guest@127.0.0.1:${port}/nowhere`]) {
  await amqp.connect(url).catch((error) => say('refused', error.message));
}
