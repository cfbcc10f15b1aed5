//! The one line that an exchange leaves in the log.
//!
//! Written by hand when lines are JSON: the general way costs ten times as much, and this is the
//! only line of a request. Its shape is that of every other line: `timestamp`, `level`,
//! `message`, the fields, `target`.

use std::{
    cell::RefCell,
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use vector_proto::id::ExchangeId;

use super::{EXCHANGE, Exchange, Passage, writer::Writer};
use crate::config::Role;

thread_local! {
    static SCRATCH: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What stands before each value, in one piece.
macro_rules! before {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// Writes the line by hand.
pub(super) fn write(ended: &Exchange<'_>, now: SystemTime, writer: &Writer) {
    SCRATCH.with_borrow_mut(|line| {
        line.clear();
        format(ended, now, line);
        writer.append(line.as_bytes());
    });
}

/// Writes a relay's line by hand.
pub(super) fn write_passage(ended: &Passage<'_>, now: SystemTime, writer: &Writer) {
    SCRATCH.with_borrow_mut(|line| {
        line.clear();
        begin(line, now, Role::Relay, ended.exchange);
        text(line, before!("from"), ended.from);
        text(line, before!("to"), ended.to);
        number(line, before!("bytes_on"), ended.bytes_on);
        number(line, before!("bytes_back"), ended.bytes_back);
        ms(line, before!("duration_ms"), ended.duration);
        text(line, before!("outcome"), ended.outcome.as_str());
        text(line, before!("reason"), ended.reason);
        text(line, before!("target"), EXCHANGE);
        line.push_str("}\n");
        writer.append(line.as_bytes());
    });
}

/// The same line through the general way, for people.
pub(super) fn passage_event(ended: &Passage<'_>) {
    tracing::info!(
        target: EXCHANGE,
        role = Role::Relay.as_str(),
        exchange = %ended.exchange,
        from = ended.from,
        to = ended.to,
        bytes_on = ended.bytes_on,
        bytes_back = ended.bytes_back,
        duration_ms = millis(ended.duration),
        outcome = ended.outcome.as_str(),
        reason = ended.reason,
        "exchange"
    );
}

/// The same line through the general way, for people.
pub(super) fn event(ended: &Exchange<'_>) {
    tracing::info!(
        target: EXCHANGE,
        role = ended.role.as_str(),
        exchange = %ended.exchange,
        key = ended.key,
        account = ended.account,
        model = ended.model,
        operation = ended.operation,
        egress = ended.egress,
        upstream = ended.upstream,
        credential = ended.credential,
        attempts = ended.attempts,
        status = ended.status,
        request_bytes = ended.request_bytes,
        response_bytes = ended.response_bytes,
        first_byte_ms = ended.first_byte.map(millis),
        duration_ms = millis(ended.duration),
        outcome = ended.outcome.as_str(),
        reason = ended.reason,
        "exchange"
    );
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn format(ended: &Exchange<'_>, now: SystemTime, line: &mut String) {
    begin(line, now, ended.role, ended.exchange);
    text(line, before!("key"), ended.key);
    text(line, before!("account"), ended.account);
    text(line, before!("model"), ended.model);
    text(line, before!("operation"), ended.operation);
    text(line, before!("egress"), ended.egress);
    text(line, before!("upstream"), ended.upstream);
    text(line, before!("credential"), ended.credential);
    number(line, before!("attempts"), u64::from(ended.attempts));
    number(line, before!("status"), u64::from(ended.status));
    number(line, before!("request_bytes"), ended.request_bytes);
    number(line, before!("response_bytes"), ended.response_bytes);
    if let Some(first_byte) = ended.first_byte {
        ms(line, before!("first_byte_ms"), first_byte);
    }
    ms(line, before!("duration_ms"), ended.duration);
    text(line, before!("outcome"), ended.outcome.as_str());
    text(line, before!("reason"), ended.reason);
    text(line, before!("target"), EXCHANGE);
    line.push_str("}\n");
}

fn begin(line: &mut String, now: SystemTime, role: Role, exchange: ExchangeId) {
    line.push_str("{\"timestamp\":\"");
    timestamp(now, line);
    line.push_str("\",\"level\":\"INFO\",\"message\":\"exchange\"");
    text(line, before!("role"), role.as_str());
    let mut id = uuid::Uuid::encode_buffer();
    let id: &str = uuid::Uuid::from_bytes(exchange.to_bytes())
        .as_hyphenated()
        .encode_lower(&mut id);
    text(line, before!("exchange"), id);
}

fn text(line: &mut String, before: &str, value: &str) {
    line.push_str(before);
    line.push('"');
    let special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    // Without a branch a byte, so that it is done many bytes at a time.
    if !value.bytes().fold(false, |any, byte| any | special(byte)) {
        line.push_str(value);
    } else {
        for letter in value.chars() {
            match letter {
                '"' => line.push_str("\\\""),
                '\\' => line.push_str("\\\\"),
                '\n' => line.push_str("\\n"),
                '\r' => line.push_str("\\r"),
                '\t' => line.push_str("\\t"),
                low if low < ' ' => {
                    let _infallible = write!(line, "\\u{:04x}", u32::from(low));
                }
                other => line.push(other),
            }
        }
    }
    line.push('"');
}

fn number(line: &mut String, before: &str, value: u64) {
    line.push_str(before);
    line.push_str(itoa::Buffer::new().format(value));
}

/// Milliseconds with three places.
fn ms(line: &mut String, before: &str, value: Duration) {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    number(line, before, micros / 1_000);
    line.push('.');
    padded(line, micros % 1_000, 3);
}

/// At least `width` digits.
fn padded(line: &mut String, value: u64, width: usize) {
    let mut room = itoa::Buffer::new();
    let digits = room.format(value);
    line.push_str(&"000000"[digits.len().min(width)..width]);
    line.push_str(digits);
}

/// RFC 3339 with microseconds, in UTC. All but the fraction stays the same for a second.
fn timestamp(now: SystemTime, line: &mut String) {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            text.clear();
            whole_second(*second, text);
        }
        line.push_str(text);
    });
    padded(line, since.subsec_micros().into(), 6);
    line.push('Z');
}

fn whole_second(unix: u64, text: &mut String) {
    let (days, second) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    for (value, width, mark) in [
        (year, 4, '-'),
        (month, 2, '-'),
        (day, 2, 'T'),
        (second / 3_600, 2, ':'),
        (second / 60 % 60, 2, ':'),
        (second % 60, 2, '.'),
    ] {
        padded(text, value, width);
        text.push(mark);
    }
}

/// Year, month and day of a day since 1970, by the calendar's 400-year cycle that begins in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, turn) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (cycle * 400 + year + turn, month, date)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Role, telemetry::Outcome};

    fn ended<'a>(model: &'a str, exchange: ExchangeId) -> Exchange<'a> {
        Exchange {
            role: Role::Ingress,
            exchange,
            key: "0123456789",
            account: "a",
            model,
            operation: "chat.completions.create",
            egress: "egress-us-1",
            upstream: "openai",
            credential: "c",
            attempts: 1,
            status: 200,
            request_bytes: 0,
            response_bytes: 1_234,
            first_byte: Some(Duration::from_micros(1_050)),
            duration: Duration::from_secs(2),
            outcome: Outcome::Whole,
            reason: "",
            usage: None,
        }
    }

    #[test]
    fn the_line_is_json_whatever_a_client_writes() {
        let exchange = ExchangeId::fresh();
        let mut line = String::new();
        let now = UNIX_EPOCH + Duration::from_micros(1_709_210_096_000_007);
        let nasty = "gpt\"\\\n\u{1}模";
        format(&ended(nasty, exchange), now, &mut line);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["timestamp"], "2024-02-29T12:34:56.000007Z");
        assert_eq!(read["message"], "exchange");
        assert_eq!(read["exchange"], exchange.to_string());
        assert_eq!(read["model"], nasty);
        assert_eq!(read["request_bytes"], 0);
        assert_eq!(read["first_byte_ms"], 1.05);
        assert_eq!(read["duration_ms"], 2_000.0);
        assert_eq!(read["target"], EXCHANGE);
        assert!(line.ends_with("}\n"));
    }

    #[test]
    fn days_have_their_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        assert_eq!(civil(20_819), (2027, 1, 1));
    }
}
