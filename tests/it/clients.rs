//! The client libraries that people use: the same program prints the same lines directly and through the proxy.

use crate::support::{client, same};
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};

#[test]
fn pika_sees_no_difference() {
    let lines = same(|port| client::python("pika_program.py", &[&port.to_string()]));
    assert!(lines.contains("after the rollback b'second' None"), "{lines}");
}

#[test]
fn amqplib_sees_no_difference() {
    let lines = same(|port| client::node("amqplib_program.js", &[&port.to_string()]));
    assert!(lines.contains(r#""after the commit" "committed""#), "{lines}");
}

#[test]
fn lapin_sees_no_difference() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be built");
    let lines = same(|port| runtime.block_on(lapin_program(port)).expect("lapin gets no error"));
    assert!(lines.contains(&"committed".to_owned()), "{lines:?}");
}

async fn lapin_program(port: u16) -> lapin::Result<Vec<String>> {
    let mut lines = Vec::new();
    let queue = "lapin-queue";
    let uri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f?heartbeat=2");
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.into(), durable, FieldTable::default()).await?;
    let persistent = || BasicProperties::default().with_delivery_mode(2);
    let publish = async |channel: &lapin::Channel, queue: &str, body: &str, mandatory: bool| {
        let options = BasicPublishOptions { mandatory, ..Default::default() };
        channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), persistent()).await
    };

    // Confirms and returns.
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let confirmation = publish(&channel, queue, "confirmed", true).await?.await?;
    lines.push(format!("{:?}", (confirmation.is_ack(), confirmation.take_message().is_some())));
    let confirmation = publish(&channel, "lapin-nowhere", "returned", true).await?.await?;
    lines.push(format!("{:?}", confirmation.take_message().map(|message| (message.reply_code, message.delivery.data))));

    // Transactions.
    let transactional = connection.create_channel().await?;
    transactional.tx_select().await?;
    publish(&transactional, queue, "committed", false).await?;
    transactional.tx_commit().await?;
    publish(&transactional, queue, "rolled back", false).await?;
    transactional.tx_rollback().await?;
    publish(&transactional, queue, "second", false).await?;
    transactional.tx_commit().await?;

    // A consumer.
    let consumer_tag = "lapin".into();
    let mut consumer = channel
        .basic_consume(queue.into(), consumer_tag, BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    for _ in 0..3 {
        let delivery = consumer.next().await.expect("the consumer lives")?;
        delivery.ack(BasicAckOptions::default()).await?;
        lines.push(String::from_utf8_lossy(&delivery.data).into_owned());
    }
    let other = connection.create_channel().await?;
    let rest = other.basic_get(queue.into(), BasicGetOptions::default()).await?;
    lines.push(format!("{:?}", rest.is_none()));

    // A refused publish.
    let options = BasicPublishOptions::default();
    transactional.basic_publish("lapin-no-exchange".into(), "key".into(), options, b"refused", persistent()).await?;
    // lapin names the refusal, or the channel that is closed already: whichever comes first.
    lines.push(format!("{:?}", transactional.tx_commit().await.is_err()));
    other.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    connection.close(200, "".into()).await?;
    Ok(lines)
}
