import static java.nio.charset.StandardCharsets.UTF_8;

import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.MessageProperties;
import java.util.Map;

/**
 * Orders as messages: ordinary, in transactions, and half.
 *
 * <p>usage: java QuickStart.java [amqp://USER:PASSWORD@HOST:PORT/VHOST]
 */
public class QuickStart {
    public static void main(String[] arguments) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(arguments.length > 0 ? arguments[0] : "amqp://app:app@127.0.0.1:5673/%2F");
        BasicProperties durable = MessageProperties.PERSISTENT_BASIC;
        try (Connection connection = factory.newConnection()) {
            Channel ordinary = connection.createChannel();
            ordinary.queueDeclare("invoices", true, false, false, null);
            ordinary.queueDeclare("parcels", true, false, false, null);

            // An ordinary message: it goes straight to RabbitMQ.
            ordinary.basicPublish("", "parcels", durable, "order 1: a book".getBytes(UTF_8));

            // A transaction: both messages arrive, or neither does.
            Channel channel = connection.createChannel();
            channel.txSelect();
            channel.basicPublish("", "invoices", durable, "order 2: 30 EUR".getBytes(UTF_8));
            channel.basicPublish("", "parcels", durable, "order 2: a lamp".getBytes(UTF_8));
            channel.txCommit();

            // Rolled back: neither does.
            channel.basicPublish("", "invoices", durable, "order 3: 50 EUR".getBytes(UTF_8));
            channel.basicPublish("", "parcels", durable, "order 3: a chair".getBytes(UTF_8));
            channel.txRollback();

            // A named transaction, for a database and a queue.
            BasicProperties half = durable.builder().headers(Map.of("x-half-transaction", "order-4")).build();
            channel.basicPublish("", "parcels", half, "order 4: a table".getBytes(UTF_8));
            channel.txSelect(); // the prepare barrier: the message is durable, and nobody sees it
            // Here the database commits. Should this program die now, Halfway asks its
            // checker what became of order 4.
            channel.txCommit();

            for (String queue : new String[] {"invoices", "parcels"}) {
                System.out.println(queue + " " + ordinary.queueDeclarePassive(queue).getMessageCount());
            }
        }
    }
}
