//! Checkers: whether each can be asked.

use std::sync::Arc;

use super::{Finding, database, reach, word};
use crate::{
    check_back,
    config::{Asked, Checker, Config, ProxyProtocol, Relay},
    relay::Credentials,
    tls::ClientTls,
    upstream::Upstream,
};

/// What it means that a checker can't be asked.
pub(super) const STAY: &str = "transactions in doubt that it knows about stay so until it answers";

/// Whether a checker can be asked. It is not asked: a question about a transaction that is not there would puzzle it.
pub(super) async fn examine(config: &Config, checker: &Checker, trust: Option<Arc<ClientTls>>) -> Vec<Finding> {
    let what = format!("checker {}", checker.name);
    let Some(asked) = checker.asked() else { return Vec::new() };
    let finding = match asked {
        Asked::Postgres { .. } => return database::examine(checker).await,
        Asked::Http { url, .. } => match reach(url, checker.timeout).await {
            Ok(()) => Finding::fine(what, format!("{}:{} takes connections", url.host, url.port)),
            Err(error) => Finding::failed(
                what,
                format!("{}:{} can't be reached: {error}", url.host, url.port),
                STAY,
                format!("start the service, or mend its url; from here: curl -v {}", word(&url.to_string())),
            ),
        },
        Asked::Amqp { vhost, queue } => {
            let proxy_protocol = config.upstream.proxy_protocol == ProxyProtocol::V2;
            let urls = config.upstream.urls.clone();
            let upstream = Arc::new(Upstream::new(urls, trust, proxy_protocol, config.upstream.connect_timeout));
            let Relay { username, password, .. } = &config.relay;
            let credentials = Credentials { username: username.clone(), password: password.expose().to_owned() };
            let place = format!("queue {queue} in virtual host {vhost}");
            match check_back::queue_exists(upstream, &credentials, vhost, queue, checker.timeout).await {
                Ok(0) => Finding::warning(
                    what,
                    format!("nobody consumes from {place} now"),
                    STAY,
                    format!("start an instance of the producer; then: rabbitmqctl list_consumers -p {}", word(vhost)),
                ),
                Ok(consumers) => Finding::fine(what, format!("{place} has consumers: {consumers}")),
                Err(error) => Finding::failed(
                    what,
                    format!("{place}: {error}"),
                    STAY,
                    format!(
                        "have the producer declare it; then: rabbitmqctl list_queues -p {} name consumers",
                        word(vhost)
                    ),
                ),
            }
        }
    };
    vec![finding]
}
