//! The certificate that clients see.

use std::time::{Duration, SystemTime};

use super::Finding;
use crate::{config::Config, tls::ServerTls};

/// Of a certificate.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Whether clients can be served over TLS, and for how long; nothing if they are not.
pub(super) fn examine(config: &Config, now: SystemTime) -> Option<Finding> {
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

#[cfg(test)]
mod tests {
    use super::super::{Fitness, unusable_files};
    use super::*;
    use std::fs;

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
        assert_eq!(examine(&config, SystemTime::now()), None);
        config.listen.tls_address = vec!["127.0.0.1:1".parse().expect("an address")];
        (config.listen.tls.certificate, config.listen.tls.key) = (Some(certificate), Some(key.clone()));
        let on = |date: &str| {
            let now = humantime::parse_rfc3339(date).expect("a date");
            examine(&config, now).expect("a certificate").fitness
        };
        assert_eq!(on("2030-12-01T00:00:00Z"), Fitness::Fine);
        assert!(matches!(on("2030-12-20T00:00:00Z"), Fitness::Warning(_)));
        assert!(matches!(on("2031-01-01T00:00:01Z"), Fitness::Failed(_)));
        assert_eq!(unusable_files(&config), []);
        fs::write(&key, "no key").expect("written");
        assert!(matches!(on("2030-12-01T00:00:00Z"), Fitness::Failed(_)));
        assert_eq!(unusable_files(&config).len(), 1);
    }
}
