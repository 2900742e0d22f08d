//! How long a certificate is good: its validity read from DER (RFC 5280 section 4.1), and what to say of it.

use std::time::{Duration, SystemTime};

use super::{Finding, Severity};
use crate::app::rfc3339;

/// When a certificate begins and ends to be good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Validity {
    /// `None` where the bytes are no certificate.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (SEQUENCE, certificate, _) = element(der)? else { return None };
        let (SEQUENCE, mut tbs, _) = element(certificate)? else { return None };
        if let (VERSION, _, rest) = element(tbs)? {
            tbs = rest;
        }
        // Serial number, signature algorithm, issuer.
        for _ in 0..3 {
            tbs = element(tbs)?.2;
        }
        let (SEQUENCE, validity, _) = element(tbs)? else { return None };
        let (kind, not_before, rest) = element(validity)?;
        let not_before = time(kind, not_before)?;
        let (kind, not_after, _) = element(rest)?;
        Some(Self { not_before, not_after: time(kind, not_after)? })
    }

    /// What there is to say of it at `now`; `what`: whose certificate it is. Certificates of short life are renewed
    /// late, so the warning comes with a third of their life left, at most thirty days before the end.
    pub fn judge(self, now: SystemTime, what: &str) -> Finding {
        let whole = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let until = rfc3339(self.not_after);
        let finding = |severity, code, seen: String| Finding::new(severity, code, what, seen);
        let Ok(left) = self.not_after.duration_since(now) else {
            return finding(Severity::Error, "certificate_expired", format!("it ended at {until}"))
                .repair("renew it; the broker takes the new files by itself", &[]);
        };
        let days = left.as_secs() / 86_400;
        if self.not_before > now {
            let seen = format!("it begins at {}: a clock is wrong", rfc3339(self.not_before));
            return finding(Severity::Error, "certificate_early", seen);
        }
        if left < URGENT.min(whole / 10) {
            return finding(Severity::Error, "certificate_expires", format!("it ends in {days} days, at {until}"))
                .repair("renew it now", &[]);
        }
        if left < SOON.min(whole / 3) {
            return finding(Severity::Warning, "certificate_expires", format!("it ends in {days} days, at {until}"))
                .repair("renew it, and see why that did not happen by itself", &[]);
        }
        finding(Severity::Ok, "certificate", format!("good until {until}"))
    }
}

/// Tag, contents and what comes after. Lengths of at most four bytes.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((*tag, contents, rest))
}

/// `UTCTime` has two digits for years of 1950 to 2049, `GeneralizedTime` four; both are in UTC and whole seconds.
fn time(kind: u8, text: &[u8]) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok()?;
    let text = match kind {
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    Some(time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().into())
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

const SOON: Duration = Duration::from_secs(30 * 86_400);
const URGENT: Duration = Duration::from_secs(7 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let mut parameters = rcgen::CertificateParams::new(["carnet.example.com".to_owned()]).expect("a name");
        parameters.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        parameters.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let key = rcgen::KeyPair::generate().expect("a key");
        parameters.self_signed(&key).expect("a certificate").der().to_vec()
    }

    fn at(text: &str) -> SystemTime {
        text.parse::<jiff::Timestamp>().expect("a time").into()
    }

    #[test]
    fn validity_is_read_in_both_forms_of_time() {
        let validity = Validity::of(&certificate((2026, 1, 2), (2051, 3, 4))).expect("a certificate");
        assert_eq!(validity.not_before, at("2026-01-02T00:00:00Z"));
        assert_eq!(validity.not_after, at("2051-03-04T00:00:00Z"));
        assert_eq!(Validity::of(b"nothing"), None);
        let whole = certificate((2026, 1, 2), (2026, 3, 4));
        assert!((0..100).all(|cut| Validity::of(&whole[..cut]).is_none()));
    }

    #[test]
    fn a_certificate_is_called_out_before_it_ends_and_short_lived_ones_later() {
        let judged = |from, until, now: &str| {
            let validity = Validity::of(&certificate(from, until)).expect("a certificate");
            let finding = validity.judge(at(now), "x");
            (finding.severity, finding.code)
        };
        let year = ((2026, 1, 1), (2027, 1, 1));
        for (now, severity, code) in [
            ("2026-11-01T00:00:00Z", Severity::Ok, "certificate"),
            ("2026-12-03T00:00:00Z", Severity::Warning, "certificate_expires"),
            ("2026-12-26T00:00:00Z", Severity::Error, "certificate_expires"),
            ("2027-01-01T00:00:01Z", Severity::Error, "certificate_expired"),
            ("2025-12-31T00:00:00Z", Severity::Error, "certificate_early"),
        ] {
            assert_eq!(judged(year.0, year.1, now), (severity, code.to_owned()), "{now}");
        }
        // Six days of life: two left are fine, one is not.
        let week = ((2026, 1, 1), (2026, 1, 7));
        assert_eq!(judged(week.0, week.1, "2026-01-04T23:00:00Z").0, Severity::Ok);
        assert_eq!(judged(week.0, week.1, "2026-01-06T00:00:00Z").0, Severity::Warning);
    }
}
