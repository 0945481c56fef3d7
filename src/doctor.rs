//! `halfway doctor`: looks at everything the proxy needs from the outside, and leaves it as it was.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    admin::{Access, TokenError},
    check_back,
    config::{self, Asked, Checker, Config, ProxyProtocol, Relay, StoreUrl, UpstreamTls, UpstreamUrl},
    relay::{self, Credentials, ProbeError},
    store::sqlite,
    tls::ClientTls,
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
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Verdict {
    /// It will.
    Fine,
    /// It will, with a limit that the text names.
    Warning,
    /// It won't.
    Failed,
}

impl Finding {
    fn new(what: impl Into<String>, verdict: Verdict, text: impl Into<String>) -> Self {
        Finding { what: what.into(), verdict, text: text.into() }
    }
}

/// Looks at the upstream nodes, the relay's account in each of `vhosts`, the checkers, and the store.
pub async fn examine(config: &Config, vhosts: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    match load_trust(config) {
        Err(text) => findings.push(Finding::new("trust in RabbitMQ's certificates", Verdict::Failed, text)),
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
        findings.push(examine_file(path));
    }
    findings.extend(examine_tokens(&config.admin));
    findings
}

/// Whether the admin port's tokens can be used; nothing if it has none.
fn examine_tokens(admin: &config::Admin) -> Option<Finding> {
    let what = "tokens of the admin port";
    let usable = |_| Finding::new(what, Verdict::Fine, format!("{} usable", admin.tokens.len()));
    let failed = |error: TokenError| Finding::new(what, Verdict::Failed, error.to_string());
    (!admin.tokens.is_empty()).then(|| Access::load(admin).map_or_else(failed, usable))
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
    let mut findings = vec![Finding::new(format!("upstream {url}"), Verdict::Fine, "reached")];
    for vhost in vhosts {
        let what = |part: &str| format!("upstream {url}, virtual host {vhost}, account {username}: {part}");
        match relay::probe_account(&upstream, &credentials, vhost).await {
            Err(ProbeError::Connect(error)) => {
                findings[0] = Finding::new(format!("upstream {url}"), Verdict::Failed, error.to_string());
                break;
            }
            Err(ProbeError::Login(error)) => {
                findings.push(Finding::new(what("login"), Verdict::Failed, error.to_string()));
            }
            Ok(report) => {
                findings.push(Finding::new(what("login"), Verdict::Fine, "accepted"));
                let (verdict, text) = match (report.may_write_to_queues, report.impersonator) {
                    (true, _) => {
                        (Verdict::Fine, "permitted for the default exchange; others may have rules of their own")
                    }
                    (false, Some(_)) => (Verdict::Warning, "not permitted for the default exchange"),
                    (false, None) => (Verdict::Failed, "not permitted for any exchange that is always there"),
                };
                findings.push(Finding::new(what("write"), verdict, text));
                let (verdict, text) = match report.impersonator {
                    Some(true) => (Verdict::Fine, "kept, whoever published"),
                    Some(false) => (
                        Verdict::Warning,
                        "the tag `impersonator` is missing: messages with a user-id become dead letters",
                    ),
                    None => (Verdict::Warning, "could not be found out without write permission"),
                };
                findings.push(Finding::new(what("user-id"), verdict, text));
            }
        }
    }
    findings
}

/// Whether a checker can be asked. It is not asked: a question about a transaction that is not there would puzzle it.
async fn examine_checker(config: &Config, checker: &Checker, trust: Option<Arc<ClientTls>>) -> Option<Finding> {
    let what = format!("checker {}", checker.name);
    let (verdict, text) = match checker.asked()? {
        Asked::Http { url, .. } => {
            let tls = url.tls.then(|| ClientTls::load(&UpstreamTls { ca: None })).transpose();
            let reached = match tls {
                Ok(tls) => check_back::reach(url, tls.as_ref(), checker.timeout).await,
                Err(error) => Err(error.to_string()),
            };
            match reached {
                Ok(()) => (Verdict::Fine, format!("{}:{} takes connections", url.host, url.port)),
                Err(error) => (Verdict::Failed, format!("{}:{} can't be reached: {error}", url.host, url.port)),
            }
        }
        Asked::Amqp { vhost, queue } => {
            let proxy_protocol = config.upstream.proxy_protocol == ProxyProtocol::V2;
            let urls = config.upstream.urls.clone();
            let upstream = Arc::new(Upstream::new(urls, trust, proxy_protocol, config.upstream.connect_timeout));
            let Relay { username, password, .. } = &config.relay;
            let credentials = Credentials { username: username.clone(), password: password.expose().to_owned() };
            let place = format!("queue {queue} in virtual host {vhost}");
            match check_back::queue_exists(upstream, &credentials, vhost, queue, checker.timeout).await {
                Ok(0) => (Verdict::Warning, format!("nobody consumes from {place} now")),
                Ok(consumers) => (Verdict::Fine, format!("{place} has consumers: {consumers}")),
                Err(error) => (Verdict::Failed, format!("{place}: {error}")),
            }
        }
    };
    Some(Finding::new(what, verdict, text))
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
            return Finding::new(what, Verdict::Failed, format!("cannot write in {}: {error}", folder.display()));
        }
    };
    let kind = fs::canonicalize(folder).ok().and_then(|folder| {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        file_system(&mounts, &folder)
    });
    match kind.as_deref() {
        Some(kind @ ("tmpfs" | "ramfs")) => Finding::new(
            what,
            Verdict::Failed,
            format!("{kind} is memory: what is stored there does not survive a crash"),
        ),
        Some("overlay") => {
            Finding::new(what, Verdict::Warning, "lies in a container's own layer and is lost with it: use a volume")
        }
        kind => {
            let kind = kind.unwrap_or("unknown file system");
            Finding::new(what, Verdict::Fine, format!("{kind}, a synced write takes {took:.1} ms"))
        }
    }
}

/// Whether the file is a store that this version can read; `halfway store check` reads all of it.
fn examine_file(path: &Path) -> Finding {
    let what = format!("store {}", path.display());
    match sqlite::stats(path) {
        Ok(stats) => {
            let text = format!("{} committed transactions wait, {} dead letters", stats.committed, stats.dead_letters);
            Finding::new(what, Verdict::Fine, text)
        }
        Err(error) => Finding::new(what, Verdict::Failed, error.to_string()),
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
        assert_eq!(finding.verdict, Verdict::Failed, "{finding:?}");
    }

    #[test]
    fn a_file_that_is_no_store_fails() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("halfway.db");
        fs::write(&path, [7; 8192]).expect("written");
        assert_eq!(examine_file(&path).verdict, Verdict::Failed);
    }

    #[test]
    fn a_token_that_can_not_be_used_fails() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let token_file = folder.path().join("alice");
        assert_eq!(examine_tokens(&config::Admin::default()), None);
        let token = config::AdminToken { token_file: token_file.clone(), role: config::Role::Viewer };
        let admin = config::Admin { tokens: vec![token], ..config::Admin::default() };
        assert_eq!(examine_tokens(&admin).expect("a token").verdict, Verdict::Failed);
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
