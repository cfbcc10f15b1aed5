//! Cuts lists into pages. A token is where the last page ended, so that changes in between skip nothing.

use tonic::Status;
use vector_proto::control::v1::{ListRequest, UsageRecord};

use crate::vault;

/// Rows of a page when nothing else is said, and at most.
const ROWS: usize = 100;
const ROWS_MAX: usize = 1_000;

/// Rows wanted.
pub(super) fn size(asked: u32) -> usize {
    match usize::try_from(asked) {
        Ok(0) => ROWS,
        Ok(rows) => rows.min(ROWS_MAX),
        Err(_) => ROWS_MAX,
    }
}

/// One page of what is sorted by name, and the token of the next.
pub(super) fn page<T>(
    all: Vec<T>,
    asked: &ListRequest,
    name: impl Fn(&T) -> String,
) -> (Vec<T>, String) {
    let rows = size(asked.page_size);
    let mut rest = all
        .into_iter()
        .filter(|row| asked.page_token.is_empty() || name(row) > asked.page_token);
    let page: Vec<T> = rest.by_ref().take(rows).collect();
    let token = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => name(last),
        _ => String::new(),
    };
    (page, token)
}

/// The token of the page behind this record.
pub(super) fn usage_token_of(last: &UsageRecord) -> String {
    format!("{}-{}", last.ended_unix_ms, vault::hex(&last.exchange))
}

/// Reads a token of [`usage_token_of`].
pub(super) fn usage_token(token: &str) -> Result<Option<(u64, Vec<u8>)>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let read = || {
        let (ended, exchange) = token.split_once('-')?;
        let exchange = u128::from_str_radix(exchange, 16).ok()?;
        Some((ended.parse().ok()?, exchange.to_be_bytes().to_vec()))
    };
    read()
        .map(Some)
        .ok_or_else(|| Status::invalid_argument("page_token: not one of ours"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_lead_to_the_end() {
        let all: Vec<String> = (0..250).map(|n| format!("{n:03}")).collect();
        let mut asked = ListRequest::default();
        let mut seen = Vec::new();
        loop {
            let (page, token) = page(all.clone(), &asked, Clone::clone);
            seen.extend(page);
            if token.is_empty() {
                break;
            }
            asked.page_token = token;
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn usage_tokens_read_back() {
        let record = UsageRecord {
            exchange: vec![7; 16].into(),
            ended_unix_ms: 12,
            ..UsageRecord::default()
        };
        let token = usage_token_of(&record);
        assert_eq!(usage_token(&token).unwrap(), Some((12, vec![7; 16])));
        assert!(usage_token("nonsense").is_err());
    }
}
