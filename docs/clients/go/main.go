// Orders as messages: ordinary, in transactions, and half.
//
// usage: go run main.go [amqp://USER:PASSWORD@HOST:PORT/VHOST]
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	amqp "github.com/rabbitmq/amqp091-go"
)

func main() {
	address := "amqp://app:app@127.0.0.1:5673/%2F"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if err := run(address); err != nil {
		log.Fatal(err)
	}
}

func run(address string) error {
	connection, err := amqp.Dial(address)
	if err != nil {
		return err
	}
	defer connection.Close()
	ordinary, err := connection.Channel()
	if err != nil {
		return err
	}
	for _, queue := range []string{"invoices", "parcels"} {
		if _, err := ordinary.QueueDeclare(queue, true, false, false, false, nil); err != nil {
			return err
		}
	}

	// An ordinary message: it goes straight to RabbitMQ.
	if err := publish(ordinary, "parcels", "order 1: a book", nil); err != nil {
		return err
	}

	// A transaction: both messages arrive, or neither does.
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	if err := channel.Tx(); err != nil {
		return err
	}
	if err := publish(channel, "invoices", "order 2: 30 EUR", nil); err != nil {
		return err
	}
	if err := publish(channel, "parcels", "order 2: a lamp", nil); err != nil {
		return err
	}
	if err := channel.TxCommit(); err != nil {
		return err
	}

	// Rolled back: it does not.
	if err := publish(channel, "parcels", "order 3: a chair", nil); err != nil {
		return err
	}
	if err := channel.TxRollback(); err != nil {
		return err
	}

	// A named transaction, for a database and a queue.
	half := amqp.Table{"x-half-transaction": "order-4"}
	if err := publish(channel, "parcels", "order 4: a table", half); err != nil {
		return err
	}
	// The prepare barrier: the message is durable, and nobody sees it.
	if err := channel.Tx(); err != nil {
		return err
	}
	// Here the database commits. Should this program die now, Halfway asks its
	// checker what became of order 4.
	if err := channel.TxCommit(); err != nil {
		return err
	}

	for _, name := range []string{"invoices", "parcels"} {
		queue, err := ordinary.QueueDeclarePassive(name, true, false, false, false, nil)
		if err != nil {
			return err
		}
		fmt.Println(name, queue.Messages)
	}
	return nil
}

func publish(channel *amqp.Channel, queue, body string, headers amqp.Table) error {
	message := amqp.Publishing{DeliveryMode: amqp.Persistent, Headers: headers, Body: []byte(body)}
	return channel.PublishWithContext(context.Background(), "", queue, false, false, message)
}
