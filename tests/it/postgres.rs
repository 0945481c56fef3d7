//! How the proxy comes to a database: over TLS or not, past hosts that won't do, and never with a word too much.

use crate::support::postgres::Postgres;
use crate::support::{PATIENCE, deadline, free_port, wait_until};
use halfway::config::PostgresUrl;
use halfway::postgres::{ConnectError, Link, Postgres as Dialer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::net::TcpListener;
use std::time::{Duration, Instant};

async fn connect(url: &str, limit: Duration) -> Result<Link, ConnectError> {
    let url = PostgresUrl::try_from(url.to_owned()).expect("a URL");
    Dialer::new(url, limit).expect("the files can be read").connect().await
}

async fn refused(url: &str) -> String {
    connect(url, PATIENCE).await.expect_err(url).to_string()
}

async fn shown(link: &Link, setting: &str) -> String {
    link.query_one(&format!("SELECT current_setting('{setting}')"), &[]).await.expect("a setting").get(0)
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

#[tokio::test]
async fn tls_trusts_whom_the_url_says_and_a_password_is_sent() {
    let (ours, others) = (authority("ours"), authority("others"));
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = |name: &str, authority: &CertifiedIssuer<'_, KeyPair>| {
        let path = folder.path().join(name);
        std::fs::write(&path, authority.pem()).expect("a file can be written");
        path.display().to_string()
    };
    let (ours_file, others_file) = (file("ours.pem", &ours), file("others.pem", &others));
    let server = Postgres::start_with(&["ssl=on"], |data| {
        let key = KeyPair::generate().expect("a key");
        let names = CertificateParams::new(["localhost".to_owned()]).expect("a DNS name");
        data.give("server.crt", &names.signed_by(&key, &ours).expect("a certificate").pem());
        data.give("server.key", &key.serialize_pem());
        data.ask_for_passwords();
    });
    server.query("CREATE ROLE halfway LOGIN PASSWORD 'a secret'");
    let at = |host: &str, more: &str| format!("postgres://halfway:a%20secret@{host}:{}/postgres?{more}", server.port());

    let verified = at("localhost", &format!("sslrootcert={ours_file}&options=-c%20work_mem%3D1MB"));
    let link = connect(&verified, PATIENCE).await.expect("a connection");
    let row = link.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.expect("a row");
    assert!(row.get::<_, bool>(0));
    assert_eq!(
        (shown(&link, "work_mem").await, shown(&link, "application_name").await),
        ("1MB".into(), "halfway".into())
    );

    // Encrypted, and with whom is not asked.
    let link = connect(&at("127.0.0.1", "sslmode=require"), PATIENCE).await.expect("a connection");
    assert_eq!(shown(&link, "ssl").await, "on");
    connect(&at("127.0.0.1", "sslmode=disable"), PATIENCE).await.expect("the server takes both");

    let stranger = refused(&at("localhost", &format!("sslrootcert={others_file}"))).await;
    assert!(stranger.contains("invalid peer certificate"), "{stranger}");
    let name = refused(&at("127.0.0.1", &format!("sslrootcert={ours_file}"))).await;
    assert!(name.contains("not valid for name"), "{name}");
    let system = refused(&at("localhost", "")).await;
    assert!(system.contains("invalid peer certificate"), "{system}");
    let wrong = refused(&at("127.0.0.1", "sslmode=disable").replace("a%20secret", "a%20guess")).await;
    assert!(wrong.contains("28P01") && !wrong.contains("guess"), "{wrong}");
    let none = refused(&at("127.0.0.1", "sslmode=disable").replace(":a%20secret", "")).await;
    assert!(none.contains("password"), "{none}");
}

#[tokio::test]
async fn hosts_that_will_not_do_are_passed_over() {
    let (primary, standby) = (Postgres::start(), Postgres::start_standby());
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = silent.local_addr().expect("bound").port();
    let gone = free_port();
    let hosts = |ports: &[u16]| ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    let url = |ports: &[u16], more: &str| format!("postgres://shop@{}/postgres?sslmode=disable{more}", hosts(ports));
    let short = Duration::from_secs(2);

    let link = connect(&url(&[gone, silent, standby.port(), primary.port()], ""), short).await.expect("the last one");
    assert_eq!(shown(&link, "port").await, primary.port().to_string());
    let any = connect(&url(&[standby.port()], "&target_session_attrs=any"), PATIENCE).await.expect("any will do");
    assert_eq!(shown(&any, "port").await, standby.port().to_string());

    let begun = Instant::now();
    let error = connect(&url(&[gone, silent, standby.port()], ""), short).await.expect_err("none will do").to_string();
    assert!(begun.elapsed() < PATIENCE);
    for reason in
        [": Connection refused", &format!("{silent}: no answer in time"), &format!("{}: is a standby", standby.port())]
    {
        assert!(error.contains(reason), "{reason}: {error}");
    }
    primary.query("ALTER ROLE shop SET default_transaction_read_only = on");
    connect(&url(&[primary.port()], ""), PATIENCE).await.expect("it is the primary");
    let error = refused(&url(&[primary.port()], "&target_session_attrs=read-write")).await;
    assert!(error.contains("takes no writes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_dropped_ends_whatever_the_server_does() {
    let server = Postgres::start();
    let url = format!("{}?sslmode=disable&application_name=dropped", server.url());
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dropped'";
    let there = || server.query(count).trim() != "0";
    let link = connect(&url, PATIENCE).await.expect("a connection");
    assert!(there());
    drop(link);
    wait_until(deadline(PATIENCE), "the connection to end", || !there());

    let url = url + "&options=-c%20client_connection_check_interval%3D100";
    let busy = connect(&url, PATIENCE).await.expect("a connection");
    let sleeps = tokio::time::timeout(Duration::from_millis(200), busy.query("SELECT pg_sleep(3600)", &[])).await;
    sleeps.expect_err("it sleeps");
    drop(busy);
    wait_until(deadline(PATIENCE), "the busy connection to end", || !there());
}
