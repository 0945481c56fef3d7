//! The proxy that runs.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
};

use super::PATIENCE;
use crate::config::Config;

const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Asks the proxy that runs with this configuration whether it lives.
/// # Errors
/// Why it seems not to.
pub fn ask_health(config: &Config) -> Result<(), String> {
    let address = config.admin.address.first();
    let address = *address.ok_or("admin.address is switched off, so there is nobody to ask")?;
    let answer = get(local(address), "/healthz").map_err(|error| format!("{address} does not answer: {error}"))?;
    match answer.split_once("\r\n") {
        Some((status, _)) if status.split(' ').nth(1) == Some("200") => Ok(()),
        _ => Err(format!("{address} answers something else than Halfway does")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn health_is_asked_of_the_admin_port() {
        let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.expect("a free port");
        let mut config = Config::default();
        config.admin.address = vec![listener.local_addr().expect("bound")];
        let access = crate::admin::Access::load(&config.admin).expect("no tokens");
        let admin = crate::admin::Admin::new(Arc::default(), Default::default(), Arc::new(access), Arc::default());
        let server = tokio::spawn(admin.serve(vec![listener]));
        ask_health(&config).expect("it lives, ready or not");
        server.abort();
        let _ = server.await;
        ask_health(&config).expect_err("nobody listens any more");
    }
}
