//! Times as people say them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyward_core::clock::{Clock, UnixMillis};
use prost_types::Timestamp;

use crate::util::system::SystemClock;

/// What a time may be.
pub(super) const FORMS: &str = "must be a duration from now, such as \"in 90d\", a date, such as 2026-12-31 (when it \
                                begins in UTC), or a time of RFC 3339, such as 2026-12-31T18:00:00+01:00";

/// The last second of the year 9999, the last that RFC 3339 can write.
const SECONDS_MAX: u64 = 253_402_300_799;

/// A time in a command line. Durations count from the moment at which it is read.
///
/// # Errors
/// With the forms that a time may have.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    parse_from(text, SystemClock.now()).ok_or_else(|| FORMS.to_owned())
}

/// A time in a command line that has come already. Durations count back from the moment at which it is read.
///
/// # Errors
/// With the forms that a time may have.
pub(super) fn parse_past(text: &str) -> Result<Timestamp, String> {
    const FORMS: &str = "must be how long ago it was, such as \"1h ago\", a date, such as 2026-12-31 (when it begins in \
                         UTC), or a time of RFC 3339, such as 2026-12-31T18:00:00+01:00";
    parse_before(text, SystemClock.now()).ok_or_else(|| FORMS.to_owned())
}

fn parse_before(text: &str, now: UnixMillis) -> Option<Timestamp> {
    let time = match text.trim().strip_suffix(" ago") {
        Some(span) => {
            let now = UNIX_EPOCH + Duration::from_millis(u64::try_from(now.0).ok()?);
            now.checked_sub(humantime::parse_duration(span.trim()).ok()?)?
        }
        None => instant(text.trim())?,
    };
    timestamp(time)
}

fn parse_from(text: &str, now: UnixMillis) -> Option<Timestamp> {
    let text = text.trim();
    let span = text.strip_prefix("in ").or(text.strip_prefix('+')).unwrap_or(text);
    let time = match humantime::parse_duration(span.trim()) {
        Ok(span) => {
            let now = UNIX_EPOCH + Duration::from_millis(u64::try_from(now.0).ok()?);
            now.checked_add(span)?
        }
        Err(_) => instant(text)?,
    };
    timestamp(time)
}

fn timestamp(time: SystemTime) -> Option<Timestamp> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp { seconds: i64::try_from(since.as_secs()).ok()?, nanos: i32::try_from(since.subsec_nanos()).ok()? })
}

/// A date, or a time with its distance from UTC.
fn instant(text: &str) -> Option<SystemTime> {
    let upper = text.to_ascii_uppercase();
    if upper.len() == "2026-12-31".len() {
        return humantime::parse_rfc3339(&format!("{upper}T00:00:00Z")).ok();
    }
    if let Some(utc) = upper.strip_suffix('Z') {
        return humantime::parse_rfc3339(&format!("{}Z", utc.replacen(' ', "T", 1))).ok();
    }
    let (local, offset) = upper.split_at_checked(upper.len().checked_sub("+01:00".len())?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let two_digits = |text: &str, below: u64| -> Option<u64> {
        match text.len() {
            2 if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok().filter(|number| *number < below),
            _ => None,
        }
    };
    let offset_time = Duration::from_secs(two_digits(hours, 24)? * 3600 + two_digits(minutes, 60)? * 60);
    let local = humantime::parse_rfc3339(&format!("{}Z", local.replacen(' ', "T", 1))).ok()?;
    match offset.as_bytes()[0] {
        b'+' => local.checked_sub(offset_time),
        b'-' => local.checked_add(offset_time),
        _ => None,
    }
}

/// A time of RFC 3339 in UTC, to the second.
pub(super) fn to_the_second(time: &Timestamp) -> String {
    exact(&Timestamp { nanos: 0, ..*time })
}

/// A time of RFC 3339 in UTC, with milliseconds where it has any: the server keeps no more.
pub(super) fn exact(time: &Timestamp) -> String {
    let known = u64::try_from(time.seconds).ok().zip(u32::try_from(time.nanos).ok());
    let known = known.filter(|(seconds, _)| *seconds <= SECONDS_MAX);
    let since = known.and_then(|(seconds, nanos)| UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)));
    match since {
        Some(since) if time.nanos == 0 => humantime::format_rfc3339_seconds(since).to_string(),
        Some(since) => humantime::format_rfc3339_millis(since).to_string(),
        None => time.seconds.to_string(),
    }
}

/// A span as people say it, such as 1day.
pub(super) fn span(span: &prost_types::Duration) -> String {
    let parts = u64::try_from(span.seconds).ok().zip(u32::try_from(span.nanos).ok());
    let known = parts.map(|(seconds, nanos)| Duration::new(seconds, nanos));
    known.map_or_else(|| exact_span(span), |known| humantime::format_duration(known).to_string())
}

/// A span as protobuf's JSON has it, with milliseconds where it has any: the server keeps no more.
pub(super) fn exact_span(span: &prost_types::Duration) -> String {
    match span.nanos / 1_000_000 {
        0 => format!("{}s", span.seconds),
        ms => format!("{}.{ms:03}s", span.seconds),
    }
}

/// Whether a time has come.
pub(super) fn has_come(time: &Timestamp) -> bool {
    time.seconds <= SystemClock.now().0.div_euclid(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-01T00:00:00Z.
    const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

    #[test]
    fn a_time_is_a_duration_from_now_or_a_date_or_rfc_3339() {
        for (text, expected) in [
            ("in 90d", "2026-04-01T00:00:00Z"),
            ("90d", "2026-04-01T00:00:00Z"),
            ("+90d", "2026-04-01T00:00:00Z"),
            ("in 1h 30m", "2026-01-01T01:30:00Z"),
            ("2026-12-31", "2026-12-31T00:00:00Z"),
            ("2026-12-31T18:00:00Z", "2026-12-31T18:00:00Z"),
            ("2026-12-31 18:00:00z", "2026-12-31T18:00:00Z"),
            ("2026-12-31T18:00:00.250Z", "2026-12-31T18:00:00.250Z"),
            ("2026-12-31T18:00:00+01:00", "2026-12-31T17:00:00Z"),
            ("2026-12-31T18:00:00-05:30", "2026-12-31T23:30:00Z"),
        ] {
            assert_eq!(parse_from(text, NOW).as_ref().map(exact).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_time_that_has_come_is_how_long_ago_it_was_or_a_date_or_rfc_3339() {
        for (text, expected) in [
            ("1h ago", Some("2025-12-31T23:00:00Z")),
            ("1h 30m ago", Some("2025-12-31T22:30:00Z")),
            ("2025-12-31", Some("2025-12-31T00:00:00Z")),
            ("2025-12-31T18:00:00+01:00", Some("2025-12-31T17:00:00Z")),
            ("1h", None),
            ("in 1h", None),
            ("ago", None),
            ("100y ago", None),
        ] {
            assert_eq!(parse_before(text, NOW).as_ref().map(exact).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_time_that_has_no_form_is_shown_as_a_number() {
        for seconds in [-1, 253_402_300_800, i64::MAX] {
            assert_eq!(exact(&Timestamp { seconds, nanos: 0 }), seconds.to_string());
        }
    }

    #[test]
    fn what_could_mean_two_times_is_refused() {
        let wrong = [
            "",
            "soon",
            "90 d ago",
            "in",
            "in a while",
            "2026-13-01",
            // Without a distance from UTC.
            "2026-12-31T18:00:00",
            "31.12.2026",
            "12/31/2026",
            "2026-12-31T18:00:00+25:00",
            "2026-12-31T18:00:00+1:00",
            "2026-12-31T18:00:00 01:00",
            "in 999999999999999999y",
            "顧客顧客顧客",
        ];
        for text in wrong {
            assert_eq!(parse_from(text, NOW), None, "{text}");
        }
    }
}
