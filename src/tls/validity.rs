//! From when and until when a certificate is valid: the one thing of it that is shown to people. rustls, which has read all
//! of it, keeps that to itself.

use std::ops::RangeInclusive;
use std::time::SystemTime;

/// Tags of DER, as X.509 uses them.
mod tag {
    pub(super) const INTEGER: u8 = 0x02;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const VERSION: u8 = 0xa0;
}

/// `notBefore` and `notAfter` of a certificate in DER; `None` where they can't be read. Source: RFC 5280, section 4.1.
pub(super) fn of(certificate: &[u8]) -> Option<RangeInclusive<SystemTime>> {
    let certificate = Der(certificate).take(tag::SEQUENCE)?;
    let mut signed = Der(certificate).take(tag::SEQUENCE).map(Der)?;
    if signed.0.first() == Some(&tag::VERSION) {
        signed.take(tag::VERSION)?;
    }
    signed.take(tag::INTEGER)?; // Its number.
    signed.take(tag::SEQUENCE)?; // The algorithm of its signature.
    signed.take(tag::SEQUENCE)?; // Who issued it.
    let mut validity = signed.take(tag::SEQUENCE).map(Der)?;
    Some(validity.time()?..=validity.time()?)
}

/// What is left of some values in DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next value, if it is such a one.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&[found, length], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match length {
            ..=0x7f => (usize::from(length), rest),
            // So many bytes of length follow. Four are more than a certificate ever has.
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
                (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (found == tag).then_some(content)
    }

    /// The next value as a time, which RFC 5280 wants in UTC and to the second.
    fn time(&mut self) -> Option<SystemTime> {
        let is_short = self.0.first() == Some(&tag::UTC_TIME);
        let text = str::from_utf8(self.take(if is_short { tag::UTC_TIME } else { tag::GENERALIZED_TIME })?).ok()?;
        let (year, rest) = text.split_at_checked(if is_short { 2 } else { 4 })?;
        let century = match is_short {
            false => "",
            true if year < "50" => "20",
            true => "19",
        };
        let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| rest.get(at..at + 2).unwrap_or_default());
        let time = format!("{century}{year}-{month}-{day}T{hour}:{minute}:{second}{}", rest.get(10..)?);
        humantime::parse_rfc3339(&time).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn both_forms_of_a_time_are_read() {
        for (year, days) in [(2031, 22_280), (2060, 32_872)] {
            let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a DNS name");
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
            let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
            let found = *of(certificate.der()).expect("two times").end();
            let since = found.duration_since(SystemTime::UNIX_EPOCH).expect("later");
            assert_eq!(since, Duration::from_secs(days * 86_400), "{year}");
        }
    }

    #[test]
    fn what_is_cut_off_has_no_time() {
        let params = CertificateParams::new(["localhost".to_owned()]).expect("a DNS name");
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        let whole: &[u8] = certificate.der();
        assert!(of(whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(of(&whole[..length]), None, "{length} bytes");
        }
    }
}
