//! How long a provider asks to be left alone: `retry-after-ms`, or `Retry-After` in seconds or as a date.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// Longest rest that a provider is believed. A longer one is cut to this and then tried again.
pub(super) const REST_MAX: Duration = Duration::from_secs(3600);

/// What the headers ask for; `None` if they say nothing that can be read.
pub(super) fn read(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    let number = |text: &str| {
        text.parse::<f64>()
            .ok()
            .filter(|number| (0.0..1e9).contains(number))
    };
    let rest = match text("retry-after-ms").and_then(number) {
        Some(ms) => Duration::from_secs_f64(ms / 1_000.0),
        None => {
            let after = text("retry-after")?;
            match number(after) {
                Some(seconds) => Duration::from_secs_f64(seconds),
                None => date(after)?.duration_since(now).unwrap_or_default(),
            }
        }
    };
    Some(rest.min(REST_MAX))
}

/// Reads the one form of a date that servers send: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, rest) = text.split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.splitn(3, ':').map(str::parse::<u64>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    let time = unix_time((year, month, day), (hour, minute, second));
    time.filter(|_| words.next() == Some("GMT"))
}

/// A time of UTC, from year, month and day, and hour, minute and second.
pub(super) fn unix_time(date: (u64, u64, u64), clock: (u64, u64, u64)) -> Option<SystemTime> {
    let ((year, month, day), (hour, minute, second)) = (date, clock);
    let legal = (1..=31).contains(&day)
        && (1..=12).contains(&month)
        && (1970..10_000).contains(&year)
        && hour < 24
        && minute < 60
        && second <= 60;
    legal.then(|| {
        let seconds = days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second;
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    })
}

/// Days from 1970-01-01, in the Gregorian calendar with years that begin in March.
const fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &str)], expected_ms: Option<u64>) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let expected = expected_ms.map(Duration::from_millis);
        assert_eq!(read(&map, now), expected, "{headers:?}");
    }

    #[test]
    fn every_form_is_read() {
        check(&[], None);
        check(&[("retry-after", "2")], Some(2_000));
        check(&[("retry-after", "0.5")], Some(500));
        check(
            &[("retry-after", "9"), ("retry-after-ms", "1500")],
            Some(1_500),
        );
        check(
            &[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")],
            Some(10_000),
        );
        check(&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(0));
        check(&[("retry-after", "99999999")], Some(3_600_000));
        for bad in [
            "soon",
            "-1",
            "NaN",
            "Sun, 99 Nov 1994 08:49:47 GMT",
            "1e400",
        ] {
            check(&[("retry-after", bad)], None);
        }
    }
}
