//! Answers `GET /v1/models` and `GET /v1/models/{model}` from the snapshot, for the key that asks.
//!
//! The shape is that of the dialect whose place the key was found in: OpenAI's, Anthropic's (`x-api-key` together with
//! `anthropic-version`) or Google's.

use bytes::Bytes;
use http::{HeaderValue, Response, header, request::Parts};
use serde_json::{Value, json};
use vector_proto::refusal::{Code, Refusal};

use super::{
    admit::may_use,
    authenticate::{Caller, Carrier},
    head,
    stream::Answer,
};
use crate::control_plane::{ModelRow, Routes};

/// What clients of this family of gateways expect where nobody knows better.
const CREATED_UNIX_S: u64 = 1_626_777_600;

/// Answers a `models.*` operation.
pub(super) fn answer(
    routes: &Routes,
    caller: &Caller,
    parts: &Parts,
    wanted: Option<&str>,
) -> Result<Response<Answer>, Refusal> {
    let anthropic =
        caller.carrier == Carrier::Anthropic && parts.headers.contains_key("anthropic-version");
    let body = match wanted {
        Some(name) => {
            let name = head::decode(name).unwrap_or_default();
            let row = routes
                .model(&name)
                .filter(|_| may_use(&caller.policy, &name))
                .ok_or_else(|| {
                    let message = format!(
                        "The model `{name}` does not exist or you do not have access to it."
                    );
                    Refusal::new(Code::ModelUnknown, message).at("model")
                })?;
            if anthropic {
                anthropic_model(&name, row)
            } else {
                openai_model(&name, row)
            }
        }
        None => {
            let mut rows: Vec<&ModelRow> = routes.models.values().map(AsRef::as_ref).collect();
            rows.retain(|row| may_use(&caller.policy, &row.name));
            rows.sort_unstable_by(|left, right| left.name.cmp(&right.name));
            list(&rows, caller.carrier, anthropic)
        }
    };
    let mut response = Response::new(Answer::whole(Bytes::from(body.to_string())));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

fn list(rows: &[&ModelRow], carrier: Carrier, anthropic: bool) -> Value {
    if anthropic {
        let data: Vec<Value> = rows
            .iter()
            .map(|row| anthropic_model(&row.name, row))
            .collect();
        let id = |row: Option<&&ModelRow>| row.map(|row| row.name.to_string());
        return json!({"data": data, "first_id": id(rows.first()), "last_id": id(rows.last()), "has_more": false});
    }
    if carrier == Carrier::Google {
        let model = |row: &&ModelRow| json!({"name": format!("models/{}", row.name), "displayName": *row.name});
        let models: Vec<Value> = rows.iter().map(model).collect();
        return json!({"models": models, "nextPageToken": null});
    }
    let data: Vec<Value> = rows
        .iter()
        .map(|row| openai_model(&row.name, row))
        .collect();
    json!({"success": true, "object": "list", "data": data})
}

fn created(row: &ModelRow) -> u64 {
    if row.created_unix_s == 0 {
        CREATED_UNIX_S
    } else {
        row.created_unix_s
    }
}

fn openai_model(name: &str, row: &ModelRow) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": created(row),
        "owned_by": *row.owned_by,
        "supported_endpoint_types": ["openai"],
    })
}

fn anthropic_model(name: &str, row: &ModelRow) -> Value {
    json!({"id": name, "created_at": date(created(row)), "display_name": name, "type": "model"})
}

/// A time as RFC 3339 writes it.
fn date(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Days from 0000-03-01, in eras of 400 years; after Howard Hinnant's "chrono-Compatible Low-Level Date Algorithms".
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(CREATED_UNIX_S), "2021-07-20T10:40:00Z");
    }
}
