//! Faults on demand: what they are called, who meets them, and how they bend an answer.
//!
//! A request asks for its own by `x-sample-fault: KIND[:ARG]` (or `metadata.sample_fault`); rules set at
//! `POST /sample/faults` meet the next requests that fit. Rules are bounded and used up by count.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::desk::Pace;
use crate::reply::{Refusal, Reply};

/// Rules that may wait at once.
const RULES_MAX: usize = 64;

/// Bytes by which a wrong length is wrong.
const WRONG_BYTES: u64 = 64;

/// What comes in place of events, when garbage is asked for.
const GARBAGE: [&[u8]; 5] = [
    b"data: {\"id\":\"chatcmpl-\n\n",
    b"\xff\xfe\x00\x01 not a line\r\r\n",
    b"event: nonsense\ndata\n:\n\n",
    b"data: [1,2\ndata: 3]]]\n\n",
    b"data: {\"choices\":\"none\"}\n\n",
];

/// A fault that a request may meet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Refuse(Refuse),
    /// Never a byte.
    Hang,
    /// The connection is cut after so many chunks.
    Die(u32),
    /// Seven bytes at a time, so many milliseconds apart.
    Drip(u64),
    /// `content-length` says more than there is.
    WrongLength,
    /// Neither events nor JSON.
    Garbage,
    /// The first byte comes so many milliseconds late.
    SlowFirst(u64),
}

/// An error answer, with or without a word on when to come back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Refuse {
    status: StatusCode,
    retry_after: RetryAfter,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RetryAfter {
    Unsaid,
    Seconds(u64),
    Millis(u64),
}

/// What was asked for is not a fault.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "not a fault; they are 429[:SECONDS|:MILLISms] 500 503[:SECONDS] 401 402 hang die[:CHUNKS] drip[:MS] wrong-length garbage slow-first:MS"
)]
pub(crate) struct NoFault;

impl FromStr for Kind {
    type Err = NoFault;

    fn from_str(text: &str) -> Result<Self, NoFault> {
        let (kind, arg) = text
            .split_once(':')
            .map_or((text, None), |(kind, arg)| (kind, Some(arg)));
        let number = |default: u64| arg.map_or(Ok(default), |arg| arg.parse().map_err(|_| NoFault));
        Ok(match kind {
            "hang" => Self::Hang,
            "die" => Self::Die(u32::try_from(number(3)?).map_err(|_| NoFault)?),
            "drip" => Self::Drip(number(20)?),
            "wrong-length" => Self::WrongLength,
            "garbage" => Self::Garbage,
            "slow-first" => Self::SlowFirst(number(2_000)?),
            status => {
                let status = status
                    .parse()
                    .ok()
                    .filter(|status: &StatusCode| status.as_u16() >= 400)
                    .ok_or(NoFault)?;
                let retry_after = match arg.map(|arg| (arg, arg.strip_suffix("ms"))) {
                    None => RetryAfter::Unsaid,
                    Some((_, Some(millis))) => {
                        RetryAfter::Millis(millis.parse().map_err(|_| NoFault)?)
                    }
                    Some((seconds, None)) => {
                        RetryAfter::Seconds(seconds.parse().map_err(|_| NoFault)?)
                    }
                };
                Self::Refuse(Refuse {
                    status,
                    retry_after,
                })
            }
        })
    }
}

impl Refuse {
    /// The error as OpenAI words it.
    pub(crate) fn reply(self) -> Reply {
        let (message, kind, code) = match self.status.as_u16() {
            401 => (
                "Incorrect API key provided.",
                "invalid_request_error",
                Some("invalid_api_key"),
            ),
            402 => (
                "You exceeded your current quota, please check your plan and billing details.",
                "insufficient_quota",
                Some("insufficient_quota"),
            ),
            429 => (
                "Rate limit reached, asked for by the tester.",
                "requests",
                Some("rate_limit_exceeded"),
            ),
            503 => (
                "The engine is currently overloaded, please try again later.",
                "server_error",
                None,
            ),
            _ => (
                "The server had an error while processing your request.",
                "server_error",
                None,
            ),
        };
        let mut refusal = Refusal::new(self.status, message).kind(kind);
        refusal.code = code;
        let reply = refusal.reply();
        match self.retry_after {
            RetryAfter::Unsaid => reply,
            RetryAfter::Seconds(seconds) => reply.header(RETRY_AFTER, seconds.into()),
            RetryAfter::Millis(millis) => reply
                .header(RETRY_AFTER, millis.div_ceil(1_000).into())
                .header(HeaderName::from_static("retry-after-ms"), millis.into()),
        }
    }
}

impl Kind {
    /// Bends an answer that was right.
    pub(crate) fn bend(&self, mut reply: Reply, pace: Pace) -> Reply {
        match self {
            Self::Refuse(_) | Self::Hang => {}
            Self::SlowFirst(ms) => {
                reply.first_ms = Some(reply.first_ms.unwrap_or(pace.first_ms) + ms)
            }
            Self::Drip(ms) => reply.answer = reply.answer.dripped(*ms),
            Self::Die(chunks) => die(&mut reply, *chunks),
            Self::WrongLength => {
                reply.declare(reply.answer.present() + WRONG_BYTES);
                if let Answer::Whole(bytes) = reply.answer {
                    reply.answer = Answer::paced([bytes], 0);
                }
            }
            Self::Garbage if reply.is_events() => {
                reply.answer = Answer::paced(GARBAGE.map(Bytes::from_static), pace.token_ms);
            }
            Self::Garbage => {
                reply.answer = Answer::Whole(Bytes::from_static(b"{\"object\": \xff <html>"))
            }
        }
        reply
    }
}

/// Cuts a stream after `chunks`, an answer of known length in its middle.
fn die(reply: &mut Reply, chunks: u32) {
    let answer = std::mem::replace(&mut reply.answer, Answer::Fill(0));
    reply.cut_after = Some(chunks);
    reply.answer = match answer {
        Answer::Whole(mut bytes) => {
            reply
                .headers
                .push((http::header::CONTENT_LENGTH, HeaderValue::from(bytes.len())));
            reply.cut_after = Some(chunks.min(1));
            let front = bytes.split_to(bytes.len() / 2);
            Answer::paced([front, bytes], 0)
        }
        other => other,
    };
}

/// Who meets a fault, and how often.
#[derive(Debug)]
struct Rule {
    text: String,
    kind: Kind,
    left: u64,
    model: Option<String>,
    key: Option<String>,
}

/// The rules that wait for requests.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Whether there is any rule: all that a benchmark's request looks at.
    armed: AtomicBool,
    rules: Mutex<Vec<Rule>>,
}

impl Faults {
    pub(crate) fn armed(&self) -> bool {
        self.armed.load(Relaxed)
    }

    /// The fault for a request, taken off the first rule that fits.
    pub(crate) fn take(&self, model: &str, key: &str) -> Option<Kind> {
        if !self.armed() {
            return None;
        }
        let mut rules = self.rules.lock();
        let fits =
            |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|wanted| wanted == is);
        let at = rules
            .iter()
            .position(|rule| fits(&rule.model, model) && fits(&rule.key, key))?;
        let rule = rules.get_mut(at)?;
        let kind = rule.kind.clone();
        rule.left -= 1;
        if rule.left == 0 {
            rules.remove(at);
        }
        self.armed.store(!rules.is_empty(), Relaxed);
        Some(kind)
    }

    /// Adds a rule as `POST /sample/faults` states it.
    pub(crate) fn add(&self, wish: &Value) -> Result<(), Refusal> {
        let text = |name: &str| wish.get(name).and_then(Value::as_str).map(str::to_owned);
        let mut kind = text("kind").ok_or_else(|| Refusal::missing("kind"))?;
        match wish.get("arg") {
            Some(Value::String(arg)) => kind = format!("{kind}:{arg}"),
            Some(Value::Number(arg)) => kind = format!("{kind}:{arg}"),
            _ => {}
        }
        let rule = Rule {
            kind: kind
                .parse()
                .map_err(|fault: NoFault| Refusal::invalid("kind", fault.to_string()))?,
            text: kind,
            left: wish
                .get("count")
                .and_then(Value::as_u64)
                .unwrap_or(1)
                .max(1),
            model: text("match_model"),
            key: text("match_key"),
        };
        let mut rules = self.rules.lock();
        if rules.len() == RULES_MAX {
            return Err(Refusal::bad(format!("{RULES_MAX} rules wait already")));
        }
        rules.push(rule);
        self.armed.store(true, Relaxed);
        Ok(())
    }

    pub(crate) fn clear(&self) {
        self.rules.lock().clear();
        self.armed.store(false, Relaxed);
    }

    pub(crate) fn show(&self) -> Value {
        let rules = self.rules.lock();
        let rules: Vec<Value> = rules
            .iter()
            .map(|rule| json!({"kind": rule.text, "count": rule.left, "match_model": rule.model}))
            .collect();
        json!({ "faults": rules })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        let refuse = |status, retry_after| {
            Ok(Kind::Refuse(Refuse {
                status,
                retry_after,
            }))
        };
        assert_eq!(
            "429".parse(),
            refuse(StatusCode::TOO_MANY_REQUESTS, RetryAfter::Unsaid)
        );
        assert_eq!(
            "429:7".parse(),
            refuse(StatusCode::TOO_MANY_REQUESTS, RetryAfter::Seconds(7))
        );
        assert_eq!(
            "503:250ms".parse(),
            refuse(StatusCode::SERVICE_UNAVAILABLE, RetryAfter::Millis(250))
        );
        assert_eq!("die".parse(), Ok(Kind::Die(3)));
        assert_eq!("die:0".parse(), Ok(Kind::Die(0)));
        for wrong in ["", "200", "429:soon", "die:-1", "explode"] {
            assert_eq!(wrong.parse::<Kind>(), Err(NoFault), "{wrong}");
        }
    }

    #[test]
    fn a_rule_meets_whom_it_fits_and_is_used_up() {
        let faults = Faults::default();
        faults
            .add(&json!({"kind": "500", "count": 2, "match_model": "gpt-4o"}))
            .unwrap();
        assert_eq!(faults.take("gpt-4o-mini", "k"), None);
        assert!(faults.take("gpt-4o", "k").is_some());
        assert!(faults.take("gpt-4o", "k").is_some());
        assert_eq!(faults.take("gpt-4o", "k"), None);
        assert!(!faults.armed());
    }
}
