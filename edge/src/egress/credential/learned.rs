//! What a provider says of its limits: `x-ratelimit-*` (OpenAI and most others) and `anthropic-ratelimit-*`.
//!
//! Of each kind of unit, what the bucket holds, what is left, and in what time it is full again. Pure.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};

use super::retry_after::unix_time;

/// How full a provider's bucket is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Level {
    /// What it holds.
    pub(super) limit: u64,
    /// What is left.
    pub(super) remaining: u64,
    /// When it is full again if nothing is taken.
    pub(super) reset: Duration,
}

/// What the headers of one answer tell, by unit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Levels {
    pub(super) requests: Option<Level>,
    pub(super) tokens: Option<Level>,
}

/// The three headers of one bucket: limit, remaining, reset.
type Bucket<'h> = [Option<&'h HeaderValue>; 3];

/// Reads an answer's headers, once for all names: most of them are others'.
pub(super) fn levels(headers: &HeaderMap, now: SystemTime) -> Levels {
    let mut open = [Bucket::default(); 2];
    let mut claude = [Bucket::default(); 2];
    for (name, value) in headers {
        let name = name.as_str();
        let place = if let Some(rest) = name.strip_prefix("x-ratelimit-") {
            let parts = rest.split_once('-');
            parts.and_then(|(kind, unit)| place(&mut open, unit, kind))
        } else if let Some(rest) = name.strip_prefix("anthropic-ratelimit-") {
            let parts = rest.split_once('-');
            parts.and_then(|(unit, kind)| place(&mut claude, unit, kind))
        } else {
            None
        };
        if let Some(place) = place {
            place.get_or_insert(value);
        }
    }
    let of = |unit: usize| level(&open[unit], now).or_else(|| level(&claude[unit], now));
    Levels {
        requests: of(0),
        tokens: of(1),
    }
}

fn place<'b, 'h>(
    buckets: &'b mut [Bucket<'h>; 2],
    unit: &str,
    kind: &str,
) -> Option<&'b mut Option<&'h HeaderValue>> {
    let unit = match unit {
        "requests" => 0,
        "tokens" => 1,
        _ => return None,
    };
    let kind = match kind {
        "limit" => 0,
        "remaining" => 1,
        "reset" => 2,
        _ => return None,
    };
    Some(&mut buckets[unit][kind])
}

fn level([limit, remaining, reset]: &Bucket<'_>, now: SystemTime) -> Option<Level> {
    let (limit, remaining) = (number((*limit)?)?, number((*remaining)?)?);
    let reset = span((*reset)?.to_str().ok()?, now)?;
    (remaining <= limit).then_some(Level {
        limit,
        remaining,
        reset,
    })
}

fn number(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.trim().parse().ok()
}

/// Reads `1s`, `6m0s`, `12ms`, `1h2m3.5s`, bare seconds, or a time of RFC 3339 in UTC.
fn span(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Some(at) = moment(text) {
        return Some(at.duration_since(now).unwrap_or_default());
    }
    let seconds = |number: f64| {
        (0.0..1e6)
            .contains(&number)
            .then(|| Duration::from_secs_f64(number))
    };
    if let Ok(number) = text.parse::<f64>() {
        return seconds(number);
    }
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += number * unit;
        rest = &rest[letters..];
    }
    seconds(sum).filter(|_| !text.is_empty())
}

/// Reads `2026-11-23T01:02:03Z`, perhaps with a fraction of a second, which is dropped.
fn moment(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let clock = clock.split_once('.').map_or(clock, |(whole, _)| whole);
    let mut clock = clock.splitn(3, ':').map(str::parse::<u64>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    unix_time((year, month, day), (hour, minute, second))
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn spans_in_every_form() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for (text, ms) in [
            ("1s", Some(1_000)),
            ("6m0s", Some(360_000)),
            ("12ms", Some(12)),
            ("1h2m3.5s", Some(3_723_500)),
            ("0.25", Some(250)),
            ("2023-11-14T22:13:25Z", Some(5_000)),
            ("2023-11-14T00:00:00Z", Some(0)),
            ("", None),
            ("soon", None),
            ("5 parsecs", None),
            ("-1s", None),
            ("1e9", None),
        ] {
            assert_eq!(span(text, now), ms.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn both_families_of_headers_are_read() {
        let now = SystemTime::UNIX_EPOCH;
        let map = |rows: &[(&'static str, &'static str)]| {
            let rows = rows.iter();
            let row = |&(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            };
            rows.map(row).collect::<HeaderMap>()
        };
        let open = map(&[
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-remaining-requests", "499"),
            ("x-ratelimit-reset-requests", "120ms"),
            ("x-ratelimit-limit-tokens", "30000"),
            ("x-ratelimit-remaining-tokens", "31000"),
            ("x-ratelimit-reset-tokens", "1s"),
        ]);
        let level = Level {
            limit: 500,
            remaining: 499,
            reset: Duration::from_millis(120),
        };
        let told = levels(&open, now);
        assert_eq!(told.requests, Some(level));
        assert_eq!(told.tokens, None, "more left than there can be");
        let claude = map(&[
            ("anthropic-ratelimit-tokens-limit", "80000"),
            ("anthropic-ratelimit-tokens-remaining", "0"),
            ("anthropic-ratelimit-tokens-reset", "1970-01-01T00:01:00Z"),
        ]);
        let level = Level {
            limit: 80_000,
            remaining: 0,
            reset: Duration::from_secs(60),
        };
        assert_eq!(levels(&claude, now).tokens, Some(level));
        assert_eq!(levels(&HeaderMap::new(), now), Levels::default());
    }
}
