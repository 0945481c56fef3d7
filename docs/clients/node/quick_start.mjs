// Orders as messages: ordinary, half, and in transactions.
//
// usage: node quick_start.mjs [amqp://USER:PASSWORD@HOST:PORT/VHOST]

import amqp from 'amqplib';
import methods from './node_modules/amqplib/lib/defs.js'; // for tx alone: see the end

const address = process.argv[2] ?? 'amqp://app:app@127.0.0.1:5673/%2F';
const connection = await amqp.connect(address);
const channel = await connection.createConfirmChannel();
await channel.assertQueue('invoices');
await channel.assertQueue('parcels');

// An ordinary message: it goes straight to RabbitMQ.
channel.sendToQueue('parcels', Buffer.from('order 1: a book'), { persistent: true });
await channel.waitForConfirms();

// A named transaction, for a database and a queue: half messages on a confirm channel.
const order4 = { persistent: true, headers: { 'x-half-transaction': 'order-4' } };
channel.sendToQueue('parcels', Buffer.from('order 4: a table'), order4);
await channel.waitForConfirms(); // the message is durable, and nobody sees it
// Here the database commits. Should this program die now, Halfway asks its
// checker what became of order 4.
channel.publish('halfway', 'commit', Buffer.alloc(0), order4);
await channel.waitForConfirms(); // the decision is durable

// A transaction without a name. amqplib has no functions for tx, but its channels can call
// any method.
const transactional = await connection.createChannel();
const tx = (name) => transactional.rpc(methods[name], {}, methods[`${name}Ok`]);
await tx('TxSelect');
transactional.sendToQueue('invoices', Buffer.from('order 2: 30 EUR'), { persistent: true });
transactional.sendToQueue('parcels', Buffer.from('order 2: a lamp'), { persistent: true });
await tx('TxCommit'); // both messages arrive

transactional.sendToQueue('invoices', Buffer.from('order 3: 50 EUR'), { persistent: true });
transactional.sendToQueue('parcels', Buffer.from('order 3: a chair'), { persistent: true });
await tx('TxRollback'); // neither does

for (const queue of ['invoices', 'parcels']) {
  console.log(queue, (await channel.checkQueue(queue)).messageCount);
}
await connection.close();
