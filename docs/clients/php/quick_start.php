<?php
// Orders as messages: ordinary, in transactions, and half.
//
// usage: php quick_start.php [amqp://USER:PASSWORD@HOST:PORT/VHOST]

require __DIR__ . '/vendor/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

$at = parse_url($argv[1] ?? 'amqp://app:app@127.0.0.1:5673/%2F');
$vhost = urldecode(substr($at['path'], 1));
$connection = new AMQPStreamConnection($at['host'], $at['port'], $at['user'], $at['pass'], $vhost);

function message(string $body, array $properties = []): AMQPMessage
{
    return new AMQPMessage($body, $properties + ['delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT]);
}

$ordinary = $connection->channel();
$ordinary->queue_declare('invoices', durable: true, auto_delete: false);
$ordinary->queue_declare('parcels', durable: true, auto_delete: false);

// An ordinary message: it goes straight to RabbitMQ.
$ordinary->basic_publish(message('order 1: a book'), '', 'parcels');

// A transaction: both messages arrive, or neither does.
$channel = $connection->channel();
$channel->tx_select();
$channel->basic_publish(message('order 2: 30 EUR'), '', 'invoices');
$channel->basic_publish(message('order 2: a lamp'), '', 'parcels');
$channel->tx_commit();

// Rolled back: neither does.
$channel->basic_publish(message('order 3: 50 EUR'), '', 'invoices');
$channel->basic_publish(message('order 3: a chair'), '', 'parcels');
$channel->tx_rollback();

// A named transaction, for a database and a queue.
$half = ['application_headers' => new AMQPTable(['x-half-transaction' => 'order-4'])];
$channel->basic_publish(message('order 4: a table', $half), '', 'parcels');
$channel->tx_select(); // the prepare barrier: the message is durable, and nobody sees it
// Here the database commits. Should this program die now, Halfway asks its
// checker what became of order 4.
$channel->tx_commit();

foreach (['invoices', 'parcels'] as $queue) {
    [, $messages] = $ordinary->queue_declare($queue, passive: true);
    echo "$queue $messages\n";
}
$connection->close();
