//! The HTTP checker: a signed POST over a connection of its own, and an answer that is exactly what it must be.

use super::answer::{self, ANSWER_BYTES_MAX};
use super::ask::{Ask, NoAnswer};
use super::question::Question;
use crate::config::HttpUrl;
use crate::http::{dial, send};
use crate::tls::ClientTls;
use crate::tx::check_back::Answer;
use crate::values::hex;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use ring::hmac;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;

/// The header that carries the signature.
const SIGNATURE: &str = "x-half-signature";

/// A checker that answers POSTs. Each check has a connection of its own: checks are rare, and a connection that was kept
/// may have gone without a word.
pub(super) struct HttpChecker {
    url: HttpUrl,
    tls: Option<Arc<ClientTls>>,
    key: Option<hmac::Key>,
}

impl HttpChecker {
    /// Asks at `url`, and signs with `secret` if there is one. `tls` is needed for `https://`.
    pub(super) fn new(url: HttpUrl, tls: Option<Arc<ClientTls>>, secret: Option<&[u8]>) -> Self {
        Self { url, tls, key: secret.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret)) }
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, NoAnswer> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&self.url.path)
            .header(HOST, &self.url.authority)
            .header(USER_AGENT, concat!("halfway/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close");
        if let Some(key) = &self.key {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            request = request.header(SIGNATURE, signature(key, now, &body));
        }
        request.body(Full::new(body)).map_err(NoAnswer::new)
    }
}

impl Ask for HttpChecker {
    async fn ask(&self, question: &Question) -> Result<Answer, NoAnswer> {
        let request = self.request(question.body.clone())?;
        let stream = dial(&self.url, self.tls.as_deref()).await.map_err(|error| in_words("cannot connect", &error))?;
        let answer = send(stream, request).await.map_err(|error| in_words("the connection failed", &error))?;
        let head = &answer.head;
        if head.status != StatusCode::OK {
            return Err(NoAnswer::new(format_args!("the status is {}, not 200", head.status.as_u16())));
        }
        if let Some(kind) = head.headers.get(CONTENT_TYPE) {
            let kind = String::from_utf8_lossy(kind.as_bytes());
            let essence = kind.split(';').next().unwrap_or_default().trim();
            if !essence.eq_ignore_ascii_case("application/json") {
                return Err(NoAnswer::new(format_args!("the content type is {kind}, not application/json")));
            }
        }
        let body = answer.body(ANSWER_BYTES_MAX).await;
        answer::read(&body.map_err(|error| in_words("the answer can't be read", &*error))?)
    }
}

/// Whether somebody takes connections at `url`: TCP, and TLS for `https://`. Sends nothing, for a question would have to
/// be about a transaction.
///
/// # Errors
/// Why not.
pub async fn reach(url: &HttpUrl, tls: Option<&ClientTls>, limit: Duration) -> Result<(), String> {
    match timeout(limit, dial(url, tls)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no connection within {}", humantime::format_duration(limit))),
    }
}

/// `t=<unix>,v1=<hex hmac-sha256 of "t.body">`.
fn signature(key: &hmac::Key, unix: u64, body: &[u8]) -> String {
    let mut signed = hmac::Context::with_key(key);
    signed.update(unix.to_string().as_bytes());
    signed.update(b".");
    signed.update(body);
    format!("t={unix},v1={}", hex(signed.sign().as_ref()))
}

/// An error with what caused it, which hyper's own words leave out.
fn in_words(what: &str, error: &(dyn Error + 'static)) -> NoAnswer {
    let mut text = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    NoAnswer::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_the_standard_tools() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"key");
        let expected = "t=1700000000,v1=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03";
        assert_eq!(signature(&key, 1_700_000_000, br#"{"a":1}"#), expected);
    }
}
