//! `halfway doctor`: looks at everything the proxy needs from the outside, and leaves it as it was.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    admin::{Access, TokenError, read_token},
    check_back,
    config::{self, Asked, Checker, Config, HttpUrl, ProxyProtocol, Relay, StoreUrl, UpstreamTls, UpstreamUrl},
    relay::{self, Credentials, ProbeError},
    store::sqlite,
    tls::{ClientTls, ServerTls},
    upstream::Upstream,
};

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// Whether it will do.
    pub verdict: Verdict,
    /// What was found, for a person.
    pub text: String,
}

/// Whether something will do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It will.
    Fine,
    /// It will, with a limit that the text names.
    Warning(Advice),
    /// It won't.
    Failed(Advice),
}

/// What to make of trouble.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Advice {
    /// Why it matters.
    pub why: &'static str,
    /// What mends it: a command, as far as one can.
    pub cure: String,
}

impl Finding {
    fn fine(what: impl Into<String>, text: impl Into<String>) -> Self {
        Finding { what: what.into(), verdict: Verdict::Fine, text: text.into() }
    }

    fn warning(what: impl Into<String>, text: impl Into<String>, why: &'static str, cure: impl Into<String>) -> Self {
        let verdict = Verdict::Warning(Advice { why, cure: cure.into() });
        Finding { what: what.into(), verdict, text: text.into() }
    }

    fn failed(what: impl Into<String>, text: impl Into<String>, why: &'static str, cure: impl Into<String>) -> Self {
        let verdict = Verdict::Failed(Advice { why, cure: cure.into() });
        Finding { what: what.into(), verdict, text: text.into() }
    }
}

/// Looks at the upstream nodes, the relay's account in each of `vhosts`, the checkers, and the store.
pub async fn examine(config: &Config, vhosts: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    match load_trust(config) {
        Err(text) => findings.push(Finding::failed(
            "trust in RabbitMQ's certificates",
            text,
            "no connection to an amqps:// node is made, so the proxy does not start",
            "put the authority's certificate in PEM where upstream.tls.ca says, and let the proxy's user read it",
        )),
        Ok(trust) => {
            for url in &config.upstream.urls {
                findings.extend(examine_node(config, url, trust.clone(), vhosts).await);
            }
            for checker in &config.checker {
                findings.extend(examine_checker(config, checker, trust.clone()).await);
            }
        }
    }
    let StoreUrl::Sqlite(path) = &config.store.url;
    findings.push(examine_place(path));
    if path.exists() {
        findings.extend(examine_file(path, config.store.max_size));
    }
    findings.extend(examine_certificate(config, SystemTime::now()));
    findings.extend(examine_tokens(&config.admin));
    findings.extend(examine_collector(&config.telemetry).await);
    findings
}

/// Whether the admin port's tokens can be used; nothing if it has none.
fn examine_tokens(admin: &config::Admin) -> Option<Finding> {
    let what = "tokens of the admin port";
    let usable = |_| Finding::fine(what, format!("{} usable", admin.tokens.len()));
    let failed = |error: TokenError| {
        let cure = match &error {
            TokenError::Unreadable { path, .. } | TokenError::Unusable { path, .. } => {
                format!("openssl rand -hex 32 > {}", word(&path.display().to_string()))
            }
            TokenError::NoRandom => "see why the system gives none: a container without getrandom(2), say".into(),
        };
        Finding::failed(what, error.to_string(), "the proxy does not start", cure)
    };
    (!admin.tokens.is_empty()).then(|| Access::load(admin).map_or_else(failed, usable))
}

/// Whether clients can be served over TLS, and for how long; nothing if they are not.
fn examine_certificate(config: &Config, now: SystemTime) -> Option<Finding> {
    let files = config.listen.tls()?;
    let what = format!("certificate {}", files.certificate.display());
    let cure = "put a new certificate, and its key, into the files of listen.tls, then send SIGHUP to the proxy";
    let not_after = match ServerTls::load(&files) {
        Ok(tls) => tls.not_after(),
        Err(error) => return Some(Finding::failed(what, error.to_string(), "the proxy does not start", cure)),
    };
    let Some(not_after) = not_after else { return Some(Finding::fine(what, "fits its key")) };
    let until = humantime::format_rfc3339_seconds(not_after);
    Some(match not_after.duration_since(now) {
        Err(_) => Finding::failed(what, format!("expired at {until}"), "clients refuse it, and can't connect", cure),
        Ok(left) if left < EXPIRES_SOON => {
            Finding::warning(what, format!("expires at {until}"), "from then on clients refuse it", cure)
        }
        Ok(_) => Finding::fine(what, format!("valid until {until}")),
    })
}

/// What can't be used of the files that the configuration names, with the keys that name them: what would keep the proxy
/// from starting, or its clients from trusting it.
pub fn unusable_files(config: &Config) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let usable = |files| ServerTls::load(&files).and_then(|tls| tls.check_time(SystemTime::now()));
    if let Some(Err(error)) = config.listen.tls().map(usable) {
        found.push(("listen.tls.certificate", error.to_string()));
    }
    if let Err(error) = load_trust(config) {
        found.push(("upstream.tls.ca", error));
    }
    for token in &config.admin.tokens {
        if let Err(error) = read_token(&token.token_file) {
            found.push(("admin.tokens", error.to_string()));
        }
    }
    found
}

/// Whether one node is reached, and what the relay's account may do there.
async fn examine_node(
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
        match relay::probe_account(&upstream, &credentials, vhost, config.relay.lanes).await {
            Err(ProbeError::Connect(error)) => {
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
            Err(ProbeError::Login(error)) => {
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
                if report.channels < config.relay.lanes {
                    findings.push(Finding::warning(
                        what("channels"),
                        format!(
                            "RabbitMQ allows {} beside those that are open now, and relay.lanes is {}",
                            report.channels, config.relay.lanes
                        ),
                        "lanes share channels then, so a channel that is refused or slow holds up more of them",
                        format!(
                            "raise channel_max in rabbitmq.conf; rabbitmqctl list_user_limits --user {account} shows the \
                             account's own limit; or lower relay.lanes"
                        ),
                    ));
                }
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

/// Whether somebody takes connections at `url`, whose certificate the system's authorities know.
async fn reach(url: &HttpUrl, limit: Duration) -> Result<(), String> {
    let tls = url.tls.then(|| ClientTls::load(&UpstreamTls { ca: None })).transpose();
    check_back::reach(url, tls.map_err(|error| error.to_string())?.as_ref(), limit).await
}

/// Whether the collector of spans is there; nothing if there are none.
async fn examine_collector(telemetry: &config::Telemetry) -> Option<Finding> {
    let url = telemetry.otlp_url.as_ref()?;
    let what = format!("collector of spans {url}");
    Some(match reach(url, PATIENCE).await {
        Ok(()) => Finding::fine(what, "takes connections"),
        Err(error) => Finding::warning(
            what,
            format!("can't be reached: {error}"),
            "spans are lost; nothing else depends on it",
            "start the collector, or mend telemetry.otlp_url; \"\" sends no spans",
        ),
    })
}

/// Whether a checker can be asked. It is not asked: a question about a transaction that is not there would puzzle it.
async fn examine_checker(config: &Config, checker: &Checker, trust: Option<Arc<ClientTls>>) -> Option<Finding> {
    const STAY: &str = "transactions in doubt that it knows about stay so until it answers";
    let what = format!("checker {}", checker.name);
    Some(match checker.asked()? {
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
    })
}

/// The command that lets the relay's account publish.
fn permit(vhost: &str, account: &str) -> String {
    format!("rabbitmqctl set_permissions -p {} {} '^$' '.*' '^$'", word(vhost), word(account))
}

/// A text as one word of a shell.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// Asks the proxy that runs with this configuration whether it lives.
/// # Errors
/// Why it seems not to.
pub fn ask_health(config: &Config) -> Result<(), String> {
    let address = config.admin.address.ok_or("admin.address is switched off, so there is nobody to ask")?;
    let answer = get(local(address), "/healthz").map_err(|error| format!("{address} does not answer: {error}"))?;
    match answer.split_once("\r\n") {
        Some((status, _)) if status.split(' ').nth(1) == Some("200") => Ok(()),
        _ => Err(format!("{address} answers something else than Halfway does")),
    }
}

fn load_trust(config: &Config) -> Result<Option<Arc<ClientTls>>, String> {
    if !config.upstream.urls.iter().any(|url| url.tls) {
        return Ok(None);
    }
    ClientTls::load(&config.upstream.tls).map(|trust| Some(Arc::new(trust))).map_err(|error| error.to_string())
}

/// Whether the folder of the store takes a synced write, and keeps it.
fn examine_place(path: &Path) -> Finding {
    let what = format!("folder of the store {}", path.display());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let took = match synced_write(folder) {
        Ok(took) => took.as_secs_f64() * 1000.0,
        Err(error) => {
            let text = format!("cannot write in {}: {error}", folder.display());
            return Finding { what, verdict: Verdict::Failed(unwritable(&error, folder)), text };
        }
    };
    let kind = fs::canonicalize(folder).ok().and_then(|folder| {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        file_system(&mounts, &folder)
    });
    match kind.as_deref() {
        Some(kind @ ("tmpfs" | "ramfs")) => Finding::failed(
            what,
            format!("{kind} is memory"),
            "what is committed there does not survive a crash",
            "set store.url to a file on a local disk: HALFWAY_STORE__URL=sqlite:/var/lib/halfway/halfway.db",
        ),
        Some("overlay") => Finding::warning(
            what,
            "lies in a container's own layer",
            "what is committed there is lost with the container",
            format!("docker run -v halfway:{} ..., or a volume of the pod", word(&folder.display().to_string())),
        ),
        kind => {
            let kind = kind.unwrap_or("unknown file system");
            Finding::fine(what, format!("{kind}, a synced write takes {took:.1} ms"))
        }
    }
}

/// Whether the file is a store that this version can read, and what in it waits for a person; `halfway store check` reads
/// all of it.
fn examine_file(path: &Path, bytes_max: u64) -> Vec<Finding> {
    let what = |part: &str| format!("store {}{part}", path.display());
    let stats = match sqlite::stats(path) {
        Ok(stats) => stats,
        Err(error) => {
            let why = "the proxy does not start on it";
            let cure =
                "halfway store check; if it is damaged, put a backup in its place, without -wal and -shm beside it";
            return vec![Finding::failed(what(""), error.to_string(), why, cure)];
        }
    };
    let text = format!("committed transactions that wait: {}; in doubt: {}", stats.committed, stats.in_doubt);
    let mut findings = vec![Finding::fine(what(""), text)];
    if stats.used_bytes > bytes_max / 100 * NEARLY_FULL_PERCENT {
        findings.push(Finding::warning(
            what(": size"),
            format!("{} of {} are in use", bytesize::ByteSize(stats.used_bytes), bytesize::ByteSize(bytes_max)),
            "at store.max_size publishers of transactions have to wait",
            "halfway store stats tells what grows: a backlog, or what is in doubt; or raise store.max_size",
        ));
    }
    if stats.dead_letters > 0 {
        findings.push(Finding::warning(
            what(": dead letters"),
            format!("waiting for a person: {}", stats.dead_letters),
            "they are committed and reach RabbitMQ only when somebody has them tried again",
            "halfway dead list; remove the cause; halfway dead retry --all --yes --reason TEXT",
        ));
    }
    findings
}

/// What to make of a folder that takes no write.
fn unwritable(error: &io::Error, folder: &Path) -> Advice {
    let folder = word(&folder.display().to_string());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Advice {
            why: "until there is room nothing can be committed or decided; what was promised is kept",
            cure: format!("df -h {folder}; df -i {folder}; make room there: a proxy that runs goes on by itself"),
        },
        io::ErrorKind::ReadOnlyFilesystem => Advice {
            why: "nothing can be committed or decided",
            cure: format!("findmnt --target {folder}; dmesg tells whether the disk failed; then mount it read-write"),
        },
        _ => Advice {
            why: "nothing can be committed, so the proxy does not start",
            cure: format!("as root: install -d -o USER {folder}, with the proxy's user"),
        },
    }
}

fn synced_write(folder: &Path) -> io::Result<Duration> {
    let path = folder.join(format!(".halfway-doctor-{}", process::id()));
    let write = || {
        let mut file = File::create_new(&path)?;
        let start = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_all()?;
        Ok(start.elapsed())
    };
    let result = write();
    // Where it could not be made, there is nothing to remove.
    let _ = fs::remove_file(&path);
    result
}

/// The type of the file system that holds `folder`: the last mount with the longest matching path.
fn file_system(mounts: &str, folder: &Path) -> Option<String> {
    let mut by_depth = BTreeMap::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else { continue };
        // The kernel writes blanks so, because they separate the fields.
        let point = PathBuf::from(point.replace("\\040", " "));
        if folder.starts_with(&point) {
            by_depth.insert(point.components().count(), kind.to_owned());
        }
    }
    by_depth.into_values().next_back()
}

/// The address to reach a port that listens on every address.
fn local(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Of a certificate.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
const NEARLY_FULL_PERCENT: u64 = 80;
const PATIENCE: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_tells_the_file_system() {
        let mounts = "overlay / overlay rw 0 0\ntmpfs /run tmpfs rw 0 0\n/dev/sda1 /run/my\\040data ext4 rw 0 0\n";
        for (folder, kind) in
            [("/var/lib", "overlay"), ("/run/x", "tmpfs"), ("/run/my data/a", "ext4"), ("/runner", "overlay")]
        {
            assert_eq!(file_system(mounts, Path::new(folder)).as_deref(), Some(kind), "{folder}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_fails_and_a_good_one_is_left_as_it_was() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        synced_write(folder.path()).expect("a writable folder");
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
        let finding = examine_place(&folder.path().join("missing/halfway.db"));
        assert!(matches!(finding.verdict, Verdict::Failed(_)), "{finding:?}");
    }

    #[test]
    fn a_full_disk_wants_room_and_a_missing_folder_to_be_made() {
        for (kind, cure) in [
            (io::ErrorKind::StorageFull, "df -h /data"),
            (io::ErrorKind::QuotaExceeded, "df -h /data"),
            (io::ErrorKind::ReadOnlyFilesystem, "findmnt --target /data"),
            (io::ErrorKind::NotFound, "as root: install -d -o USER /data"),
            (io::ErrorKind::PermissionDenied, "as root: install -d -o USER /data"),
        ] {
            let advice = unwritable(&kind.into(), Path::new("/data"));
            assert!(advice.cure.starts_with(cure), "{kind}: {}", advice.cure);
        }
    }

    #[test]
    fn a_file_that_is_no_store_fails() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("halfway.db");
        fs::write(&path, [7; 8192]).expect("written");
        assert!(matches!(examine_file(&path, 1)[0].verdict, Verdict::Failed(_)));
    }

    #[tokio::test]
    async fn a_collector_that_is_away_is_a_warning() {
        assert_eq!(examine_collector(&config::Telemetry::default()).await, None);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let url = Some(HttpUrl::try_from(url).expect("a URL"));
        let telemetry = config::Telemetry { otlp_url: url, ..config::Telemetry::default() };
        assert_eq!(examine_collector(&telemetry).await.expect("a collector").verdict, Verdict::Fine);
        drop(listener);
        let gone = examine_collector(&telemetry).await.expect("a collector");
        assert!(matches!(gone.verdict, Verdict::Warning(_)), "{gone:?}");
    }

    #[test]
    fn what_a_shell_would_split_or_obey_is_quoted() {
        assert_eq!(
            ["relay", "/", "a b", "it's", "", "$(x)"].map(word),
            ["relay", "/", "'a b'", "'it'\\''s'", "''", "'$(x)'"]
        );
    }

    #[test]
    fn a_certificate_is_looked_at_before_it_expires() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a DNS name");
        params.not_after = rcgen::date_time_ymd(2031, 1, 1);
        let own_key = rcgen::KeyPair::generate().expect("a key");
        fs::write(&certificate, params.self_signed(&own_key).expect("a certificate").pem()).expect("written");
        fs::write(&key, own_key.serialize_pem()).expect("written");
        let mut config = Config::default();
        assert_eq!(examine_certificate(&config, SystemTime::now()), None);
        config.listen.tls_address = Some("127.0.0.1:1".parse().expect("an address"));
        (config.listen.tls.certificate, config.listen.tls.key) = (Some(certificate), Some(key.clone()));
        let on = |date: &str| {
            let now = humantime::parse_rfc3339(date).expect("a date");
            examine_certificate(&config, now).expect("a certificate").verdict
        };
        assert_eq!(on("2030-12-01T00:00:00Z"), Verdict::Fine);
        assert!(matches!(on("2030-12-20T00:00:00Z"), Verdict::Warning(_)));
        assert!(matches!(on("2031-01-01T00:00:01Z"), Verdict::Failed(_)));
        assert_eq!(unusable_files(&config), []);
        fs::write(&key, "no key").expect("written");
        assert!(matches!(on("2030-12-01T00:00:00Z"), Verdict::Failed(_)));
        assert_eq!(unusable_files(&config).len(), 1);
    }

    #[test]
    fn a_token_that_can_not_be_used_fails() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let token_file = folder.path().join("alice");
        assert_eq!(examine_tokens(&config::Admin::default()), None);
        let token = config::AdminToken { token_file: token_file.clone(), role: config::Role::Viewer };
        let admin = config::Admin { tokens: vec![token], ..config::Admin::default() };
        let Some(Finding { verdict: Verdict::Failed(Advice { cure, .. }), .. }) = examine_tokens(&admin) else {
            panic!("it is not there")
        };
        assert_eq!(cure, format!("openssl rand -hex 32 > {}", token_file.display()));
        fs::write(&token_file, "secret\n").expect("written");
        assert_eq!(examine_tokens(&admin).expect("a token").verdict, Verdict::Fine);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn health_is_asked_of_the_admin_port() {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("a free port");
        let mut config = Config::default();
        config.admin.address = Some(listener.local_addr().expect("bound"));
        let access = crate::admin::Access::load(&config.admin).expect("no tokens");
        let admin = crate::admin::Admin::new(Arc::default(), Arc::default(), Arc::new(access), Arc::default());
        let server = tokio::spawn(admin.serve(listener));
        ask_health(&config).expect("it lives, ready or not");
        server.abort();
        let _ = server.await;
        ask_health(&config).expect_err("nobody listens any more");
    }
}
