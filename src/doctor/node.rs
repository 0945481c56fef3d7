//! RabbitMQ: whether a node is reached, and what the relay's account may do there.

use std::sync::Arc;

use super::{Finding, word};
use crate::{
    config::{Config, ProxyProtocol, Relay, UpstreamUrl},
    relay::{self, Credentials, RightsError},
    tls::ClientTls,
    upstream::Upstream,
};

/// Whether one node is reached, and what the relay's account may do there.
pub(super) async fn examine(
    config: &Config,
    url: &UpstreamUrl,
    trust: Option<Arc<ClientTls>>,
    vhosts: &[String],
) -> Vec<Finding> {
    let proxy_protocol = config.upstream.proxy_protocol == ProxyProtocol::V2;
    let upstream = Upstream::new(vec![url.clone()], trust, proxy_protocol, config.upstream.connect_timeout);
    let Relay { username, password, .. } = &config.relay;
    let credentials = Credentials { username: username.clone(), password: password.expose().to_owned() };
    let mut findings = vec![Finding::fine(format!("upstream {url}"), "reached")];
    let account = word(username);
    for vhost in vhosts {
        let what = |part: &str| format!("upstream {url}, virtual host {vhost}, account {username}: {part}");
        let lanes = config.relay.lanes;
        let too_few = |channels: u16| {
            let text = format!("RabbitMQ allows only {channels}, and relay.lanes is {lanes}");
            let why = "lanes share channels then, so a channel that is refused or slow holds up more of them";
            let cure = format!(
                "raise channel_max in rabbitmq.conf; rabbitmqctl list_user_limits --user {account} shows the account's own \
                 limit; or lower relay.lanes"
            );
            (channels < lanes).then(|| Finding::warning(what("channels"), text, why, cure))
        };
        match relay::find_rights(&upstream, &credentials, vhost, lanes).await {
            Err(RightsError::Connect(error)) => {
                findings[0] = Finding::failed(
                    format!("upstream {url}"),
                    error.to_string(),
                    "clients can't connect through it, and committed messages wait in the store",
                    format!(
                        "on that node: rabbitmq-diagnostics check_port_listener {}; or mend upstream.urls",
                        url.port
                    ),
                );
                break;
            }
            Err(RightsError::Login(error)) => {
                findings.push(Finding::failed(
                    what("login"),
                    error.to_string(),
                    "committed messages wait in the store until the relay's account is let in",
                    format!(
                        "rabbitmqctl authenticate_user {account}; if it is not there: rabbitmqctl add_user {account}; {}",
                        permit(vhost, username)
                    ),
                ));
            }
            Err(RightsError::UsedUp { limit, text }) => {
                findings.push(Finding::fine(what("login"), "accepted"));
                findings.extend(too_few(limit));
                findings.push(Finding::warning(
                    what("permissions"),
                    format!("all channels that the account may have are open: {text}"),
                    "what it may do can't be looked at",
                    format!(
                        "rabbitmqctl set_user_limits {account}, with a few channels more; then halfway doctor again"
                    ),
                ));
            }
            Ok(report) => {
                findings.push(Finding::fine(what("login"), "accepted"));
                const DEAD: &str = "committed messages that it may not write become dead letters";
                findings.push(match (report.may_write_to_queues, report.impersonator) {
                    (true, _) => Finding::fine(
                        what("write"),
                        "permitted for the default exchange; others may have rules of their own",
                    ),
                    (false, Some(_)) => Finding::warning(
                        what("write"),
                        "not permitted for the default exchange",
                        DEAD,
                        permit(vhost, username),
                    ),
                    (false, None) => Finding::failed(
                        what("write"),
                        "not permitted for any exchange that is always there",
                        DEAD,
                        permit(vhost, username),
                    ),
                });
                findings.extend(too_few(report.channels));
                findings.push(match report.impersonator {
                    Some(true) => Finding::fine(what("user-id"), "kept, whoever published"),
                    Some(false) => Finding::warning(
                        what("user-id"),
                        "the tag `impersonator` is missing",
                        "messages with a user-id of somebody else become dead letters",
                        format!("rabbitmqctl set_user_tags {account} impersonator   # and the tags that it has now"),
                    ),
                    None => Finding::warning(
                        what("user-id"),
                        "could not be found out without write permission",
                        "messages with a user-id may become dead letters",
                        format!("{}; then halfway doctor again", permit(vhost, username)),
                    ),
                });
            }
        }
    }
    findings
}

/// The command that lets the relay's account publish.
fn permit(vhost: &str, account: &str) -> String {
    format!("rabbitmqctl set_permissions -p {} {} '^$' '.*' '^$'", word(vhost), word(account))
}
