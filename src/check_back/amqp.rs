//! The AMQP checker: the question is a message to its queue, and the answer comes back by RabbitMQ's direct reply-to,
//! for which the account needs no permission to make or read queues.

use super::answer;
use super::ask::{Ask, NoAnswer};
use super::question::Question;
use super::transport;
use crate::relay::{Backoff, Credentials};
use crate::tx::check_back::Answer;
use crate::upstream::Upstream;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, Consumer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const REPLY_TO: &str = "amq.rabbitmq.reply-to";
const TRANSIENT: u8 = 1;
/// Pauses between attempts to connect; checks in between have no answer.
const RECONNECT: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(10) };

/// A checker whose instances consume from a queue. Any of them may answer; a question that one takes and does not
/// acknowledge goes to the next, as long as it has not expired.
pub(super) struct AmqpChecker {
    upstream: Arc<Upstream>,
    credentials: Credentials,
    vhost: String,
    queue: String,
    /// The life of a question, and the longest that anybody waits for a connection.
    timeout: Duration,
    link: tokio::sync::Mutex<Link>,
}

/// The connection, or when to try for one.
#[derive(Default)]
struct Link {
    open: Option<Arc<Open>>,
    failures: u32,
    not_before: Option<Instant>,
}

/// An open connection with a consumer for answers.
struct Open {
    connection: Connection,
    channel: Channel,
    waiting: Waiting,
    /// Passes answers on. Ends with the connection, and is ended with this.
    _answers: JoinSet<()>,
}

/// Who waits for an answer, by correlation-id; `None` when no answer can come any more.
#[derive(Clone)]
struct Waiting(Arc<Mutex<Option<Places>>>);

type Places = HashMap<String, oneshot::Sender<Vec<u8>>>;

/// A place in [`Waiting`], left when it is dropped: an answer that comes later is nobody's.
struct Awaited {
    waiting: Waiting,
    id: String,
    answer: oneshot::Receiver<Vec<u8>>,
}

impl AmqpChecker {
    /// Asks at `queue` in `vhost`. Connects with the first question.
    pub(super) fn new(
        upstream: Arc<Upstream>,
        credentials: Credentials,
        vhost: &str,
        queue: &str,
        timeout: Duration,
    ) -> Self {
        Self { upstream, credentials, vhost: vhost.into(), queue: queue.into(), timeout, link: Default::default() }
    }

    /// The connection; a new one, if there is none that lives.
    async fn link(&self) -> Result<Arc<Open>, NoAnswer> {
        let mut link = self.link.lock().await;
        if let Some(open) = link.open.as_ref().filter(|open| open.lives()) {
            return Ok(Arc::clone(open));
        }
        link.open = None;
        if let Some(at) = link.not_before.filter(|at| Instant::now() < *at) {
            let pause = at - Instant::now();
            return Err(NoAnswer::new(format_args!("RabbitMQ can't be reached; the next try is in {pause:.1?}")));
        }
        // Whoever asks may give up while this runs, and then the next one starts anew.
        let opened = match timeout(self.timeout, Open::new(&self.upstream, &self.credentials, &self.vhost)).await {
            Ok(Ok(open)) => Ok(Arc::new(open)),
            Ok(Err(error)) => Err(NoAnswer::new(format_args!("cannot connect to RabbitMQ: {error}"))),
            Err(_) => Err(NoAnswer::new("RabbitMQ did not let us in in time")),
        };
        match &opened {
            Ok(open) => *link = Link { open: Some(Arc::clone(open)), ..Link::default() },
            Err(_) => {
                link.failures = link.failures.saturating_add(1);
                link.not_before = Some(Instant::now() + RECONNECT.pause(link.failures));
            }
        }
        opened
    }

    fn properties(&self, correlation: &str) -> BasicProperties {
        BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(TRANSIENT)
            .with_correlation_id(correlation.into())
            .with_reply_to(REPLY_TO.into())
            .with_expiration(self.timeout.as_millis().max(1).to_string().into())
    }
}

impl Ask for AmqpChecker {
    async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer> {
        let open = self.link().await?;
        // Unlike any that was used before, so that a late answer to an earlier attempt fits nobody.
        let id = format!("{}/{}/{:016x}", question.id, question.attempt, fastrand::u64(..));
        let mut place = open.waiting.place(id.clone());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (queue, properties) = (self.queue.as_str().into(), self.properties(&id));
        let failed = |error: lapin::Error| NoAnswer::new(format_args!("the question can't be published: {error}"));
        let confirm = open.channel.basic_publish("".into(), queue, options, &question.body, properties).await;
        let confirmation = confirm.map_err(failed)?.await.map_err(failed)?;
        let nacked = confirmation.is_nack();
        if let Some(returned) = confirmation.take_message() {
            let reason =
                format!("queue `{}` in `{}` takes no question: {}", self.queue, self.vhost, returned.reply_text);
            return Err(NoAnswer::new(reason));
        }
        if nacked {
            return Err(NoAnswer::new(format_args!("queue `{}` is full", self.queue)));
        }
        let body = (&mut place.answer).await.map_err(|_| NoAnswer::new("the connection to RabbitMQ was lost"))?;
        answer::read(&body)
    }
}

impl Open {
    async fn new(upstream: &Arc<Upstream>, credentials: &Credentials, vhost: &str) -> lapin::Result<Self> {
        let connection = transport::connect(Arc::clone(upstream), credentials, vhost).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = channel.basic_consume(REPLY_TO.into(), "".into(), options, FieldTable::default()).await?;
        let waiting = Waiting::new();
        let mut answers = JoinSet::new();
        answers.spawn(pass_on(consumer, waiting.clone()));
        Ok(Self { connection, channel, waiting, _answers: answers })
    }

    fn lives(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected() && !self.waiting.is_over()
    }
}

/// Gives each answer to who waits for it, until the connection ends.
async fn pass_on(mut answers: Consumer, waiting: Waiting) {
    while let Some(Ok(delivery)) = answers.next().await {
        let correlation = delivery.properties.correlation_id().as_ref().map(|id| id.as_str().to_owned());
        match correlation.and_then(|id| waiting.leave(&id)) {
            // Whoever waited may have given up at this very moment.
            Some(answer) => drop(answer.send(delivery.data)),
            None => tracing::debug!("an answer came that nobody waits for, or waits for any more"),
        }
    }
    waiting.end();
}

impl Waiting {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(HashMap::new()))))
    }

    fn held(&self) -> MutexGuard<'_, Option<Places>> {
        // Each change is one insert or remove, so one that panicked has left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place under `id`. When no answer can come any more, its wait ends at once.
    fn place(&self, id: String) -> Awaited {
        let (sender, answer) = oneshot::channel();
        if let Some(waiting) = self.held().as_mut() {
            waiting.insert(id.clone(), sender);
        }
        Awaited { waiting: self.clone(), id, answer }
    }

    fn leave(&self, id: &str) -> Option<oneshot::Sender<Vec<u8>>> {
        self.held().as_mut()?.remove(id)
    }

    fn end(&self) {
        *self.held() = None;
    }

    fn is_over(&self) -> bool {
        self.held().is_none()
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        self.waiting.leave(&self.id);
    }
}

/// Whether `queue` exists in `vhost`, and how many consume from it.
///
/// # Errors
/// Why not, or why it could not be found out.
pub async fn queue_exists(
    upstream: Arc<Upstream>,
    credentials: &Credentials,
    vhost: &str,
    queue: &str,
    limit: Duration,
) -> Result<u32, String> {
    let look = async {
        let connection = transport::connect(upstream, credentials, vhost).await?;
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        let consumers = found.consumer_count();
        connection.close(200, "".into()).await?;
        Ok::<_, lapin::Error>(consumers)
    };
    match timeout(limit, look).await {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {}", humantime::format_duration(limit))),
    }
}
