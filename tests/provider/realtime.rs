//! Realtime over WebSocket: one session, text or made-up audio out, at the desk's pace.
//!
//! Takes the connection over from hyper. The session answers each client event as the API does and notices
//! `response.cancel` between two deltas. Queues and items are bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::task::TaskTracker;

use crate::ask;
use crate::bench;
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::words::{self, Words};

/// Items one conversation keeps.
const ITEMS_MAX: usize = 1_000;

/// Events a client may have sent while a response runs; more end the session.
const WAITING_MAX: usize = 256;

/// Bytes of made-up audio with each piece of its transcript: 10 ms of 24 kHz PCM.
const AUDIO_BYTES: usize = 480;

/// Accepts the upgrade and leaves the session to a task.
pub(crate) fn open(
    desk: &Arc<Desk>,
    tasks: &TaskTracker,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let headers = request.headers();
    let upgrade = headers
        .get(UPGRADE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let Some(key) = headers
        .get(SEC_WEBSOCKET_KEY)
        .filter(|_| upgrade.eq_ignore_ascii_case("websocket"))
    else {
        return Err(Refusal::bad("This endpoint expects a WebSocket upgrade."));
    };
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()))
        .map_err(|_| Refusal::bad("bad key"))?;
    let query = request.uri().query().unwrap_or("");
    let model = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("model="))
        .unwrap_or("gpt-realtime")
        .to_owned();
    ask::known(&model)?;
    let offered = headers
        .get(SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let realtime = offered
        .split(',')
        .any(|protocol| protocol.trim() == "realtime");
    let mut reply = Reply::json(&Value::Null).at_once();
    reply.answer = crate::answer::Answer::Fill(0);
    reply.status = StatusCode::SWITCHING_PROTOCOLS;
    reply = reply
        .header(CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(UPGRADE, HeaderValue::from_static("websocket"))
        .header(SEC_WEBSOCKET_ACCEPT, accept);
    if realtime {
        reply = reply.header(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("realtime"));
    }
    let upgraded = hyper::upgrade::on(request);
    let desk = Arc::clone(desk);
    tasks.spawn(async move {
        let _open = desk.stats.session();
        if let Ok(upgraded) = upgraded.await {
            let socket =
                WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            // How a session ends is the client's affair.
            drop(Session::new(socket, &model, desk.pace.token_ms).run().await);
        }
    });
    Ok(reply)
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// One conversation.
struct Session {
    socket: Socket,
    session: Value,
    items: VecDeque<Value>,
    waiting: VecDeque<Value>,
    gap: Duration,
}

impl Session {
    fn new(socket: Socket, model: &str, gap_ms: u64) -> Self {
        let session = json!({
            "id": desk::fresh_id("sess_"), "object": "realtime.session", "type": "realtime", "model": model,
            "output_modalities": ["text"], "instructions": "", "tools": [], "tool_choice": "auto",
            "max_output_tokens": "inf", "tracing": null, "include": null,
            "expires_at": desk::unix_ms() / 1_000 + 3_600,
            "audio": {
                "input": {"format": {"type": "audio/pcm", "rate": 24_000}, "turn_detection": null},
                "output": {"format": {"type": "audio/pcm", "rate": 24_000}, "voice": "marin", "speed": 1.0},
            },
        });
        let gap = Duration::from_millis(gap_ms);
        Self {
            socket,
            session,
            items: VecDeque::new(),
            waiting: VecDeque::new(),
            gap,
        }
    }

    async fn run(mut self) -> Result<(), tungstenite::Error> {
        self.send("session.created", json!({ "session": self.session }))
            .await?;
        loop {
            let event = match self.waiting.pop_front() {
                Some(event) => event,
                None => match self.socket.next().await {
                    Some(message) => match heard(&message?) {
                        Some(event) => event,
                        None => continue,
                    },
                    None => return Ok(()),
                },
            };
            self.answer(event).await?;
        }
    }

    async fn send(&mut self, kind: &str, mut event: Value) -> Result<(), tungstenite::Error> {
        event["type"] = json!(kind);
        event["event_id"] = json!(desk::fresh_id("event_"));
        self.socket.send(Message::text(event.to_string())).await
    }

    async fn answer(&mut self, event: Value) -> Result<(), tungstenite::Error> {
        match event.get("type").and_then(Value::as_str).unwrap_or("") {
            "session.update" => {
                if let (Some(session), Some(Value::Object(update))) =
                    (self.session.as_object_mut(), event.get("session"))
                {
                    session.extend(update.clone());
                }
                self.send("session.updated", json!({ "session": self.session }))
                    .await
            }
            "conversation.item.create" => {
                let item = event.get("item").cloned().unwrap_or_else(|| json!({}));
                self.add(item).await
            }
            "conversation.item.delete" => {
                self.items.retain(|item| item["id"] != event["item_id"]);
                self.send(
                    "conversation.item.deleted",
                    json!({"item_id": event["item_id"]}),
                )
                .await
            }
            "input_audio_buffer.append" => Ok(()),
            "input_audio_buffer.clear" => self.send("input_audio_buffer.cleared", json!({})).await,
            "input_audio_buffer.commit" => {
                let id = desk::fresh_id("item_");
                self.send(
                    "input_audio_buffer.committed",
                    json!({"item_id": id, "previous_item_id": null}),
                )
                .await?;
                let content = json!([{"type": "input_audio", "transcript": "sample audio"}]);
                self.add(json!({"id": id, "type": "message", "role": "user", "content": content}))
                    .await
            }
            "response.create" => self.respond().await,
            "response.cancel" => {
                self.complain(
                    &event,
                    "response_cancel_not_active",
                    "Cancellation failed: no active response found",
                )
                .await
            }
            kind => {
                let message = format!("Invalid value: '{kind}'.");
                self.complain(&event, "invalid_value", &message).await
            }
        }
    }

    async fn complain(
        &mut self,
        event: &Value,
        code: &str,
        message: &str,
    ) -> Result<(), tungstenite::Error> {
        let error = json!({
            "type": "invalid_request_error", "code": code, "message": message, "param": "type",
            "event_id": event.get("event_id").unwrap_or(&Value::Null),
        });
        self.send("error", json!({ "error": error })).await
    }

    /// Puts an item into the conversation and says so.
    async fn add(&mut self, mut item: Value) -> Result<(), tungstenite::Error> {
        if item.get("id").is_none() {
            item["id"] = json!(desk::fresh_id("item_"));
        }
        item["object"] = json!("realtime.item");
        item["status"] = json!("completed");
        let previous = self
            .items
            .back()
            .map_or(Value::Null, |item| item["id"].clone());
        if self.items.len() == ITEMS_MAX {
            self.items.pop_front();
        }
        self.items.push_back(item.clone());
        let event = json!({"previous_item_id": previous, "item": item});
        self.send("conversation.item.added", event.clone()).await?;
        self.send("conversation.item.done", event).await
    }

    /// Runs one response from `response.created` to `response.done`.
    async fn respond(&mut self) -> Result<(), tungstenite::Error> {
        let user = |item: &&Value| item.get("role").and_then(Value::as_str) == Some("user");
        let prompt = self
            .items
            .iter()
            .rev()
            .find(user)
            .map(|item| words::content(&item["content"]))
            .unwrap_or_default();
        let audio = self.session["output_modalities"]
            .as_array()
            .is_some_and(|kinds| kinds.contains(&json!("audio")));
        let mut response = json!({
            "id": desk::fresh_id("resp_"), "object": "realtime.response", "status": "in_progress", "output": [],
            "status_details": null, "usage": null, "metadata": null,
            "output_modalities": [if audio { "audio" } else { "text" }],
        });
        self.send("response.created", json!({ "response": response }))
            .await?;
        let mut turn = Turn {
            response_id: response["id"].clone(),
            item_id: json!(desk::fresh_id("item_")),
            audio,
            words: Words::answer(&prompt, None, None),
            said: 0,
        };
        let finished = self.speak(&mut turn).await?;
        let item = turn.item(if finished { "completed" } else { "incomplete" });
        self.items.push_back(item.clone());
        let (heard, said) = (4 + words::tokens(&prompt), turn.said as u64);
        response["status"] = json!(if finished { "completed" } else { "cancelled" });
        response["output"] = json!([item]);
        response["usage"] = json!({
            "total_tokens": heard + said, "input_tokens": heard, "output_tokens": said,
            "input_token_details": {"text_tokens": heard, "audio_tokens": 0, "image_tokens": 0, "cached_tokens": 0},
            "output_token_details": {"text_tokens": said, "audio_tokens": 0},
        });
        self.send("response.done", json!({ "response": response }))
            .await
    }

    /// Sends a turn's item piece by piece; false if the client cancelled it.
    async fn speak(&mut self, turn: &mut Turn) -> Result<bool, tungstenite::Error> {
        let begun = turn.item("in_progress");
        self.send(
            "response.output_item.added",
            turn.of_response(json!({ "item": begun })),
        )
        .await?;
        self.send(
            "conversation.item.added",
            json!({"previous_item_id": null, "item": begun}),
        )
        .await?;
        self.send(
            "response.content_part.added",
            turn.place(json!({"part": turn.part()})),
        )
        .await?;
        let mut due = Instant::now();
        while let Some(piece) = turn.words.pieces.get(turn.said).cloned() {
            due += self.gap;
            if self.cancelled(due).await? {
                return Ok(false);
            }
            turn.said += 1;
            if turn.audio {
                let audio = STANDARD.encode(bench::fill_block().slice(..AUDIO_BYTES));
                self.send(
                    "response.output_audio.delta",
                    turn.place(json!({ "delta": audio })),
                )
                .await?;
                self.send(
                    "response.output_audio_transcript.delta",
                    turn.place(json!({ "delta": piece })),
                )
                .await?;
            } else {
                self.send(
                    "response.output_text.delta",
                    turn.place(json!({ "delta": piece })),
                )
                .await?;
            }
        }
        self.close(turn).await?;
        Ok(true)
    }

    /// Closes what [`Self::speak`] opened, in turn.
    async fn close(&mut self, turn: &Turn) -> Result<(), tungstenite::Error> {
        let text = turn.words.text();
        if turn.audio {
            self.send("response.output_audio.done", turn.place(json!({})))
                .await?;
            self.send(
                "response.output_audio_transcript.done",
                turn.place(json!({ "transcript": text })),
            )
            .await?;
        } else {
            self.send(
                "response.output_text.done",
                turn.place(json!({ "text": text })),
            )
            .await?;
        }
        self.send(
            "response.content_part.done",
            turn.place(json!({"part": turn.part()})),
        )
        .await?;
        let done = turn.item("completed");
        self.send(
            "response.output_item.done",
            turn.of_response(json!({ "item": done })),
        )
        .await?;
        self.send(
            "conversation.item.done",
            json!({"previous_item_id": null, "item": done}),
        )
        .await
    }

    /// Waits until `due`, keeping what the client sends meanwhile; true if that was a cancellation.
    async fn cancelled(&mut self, due: Instant) -> Result<bool, tungstenite::Error> {
        loop {
            let message = match tokio::time::timeout_at(due, self.socket.next()).await {
                Err(_) => return Ok(false),
                Ok(None) => return Err(tungstenite::Error::ConnectionClosed),
                Ok(Some(message)) => message?,
            };
            let Some(event) = heard(&message) else {
                continue;
            };
            if event.get("type").and_then(Value::as_str) == Some("response.cancel") {
                return Ok(true);
            }
            if self.waiting.len() == WAITING_MAX {
                return Err(tungstenite::Error::AttackAttempt);
            }
            self.waiting.push_back(event);
        }
    }
}

/// A client's event; what is not JSON is an event of no type, and control frames are none.
fn heard(message: &Message) -> Option<Value> {
    match message {
        Message::Text(text) => {
            Some(serde_json::from_str(text).unwrap_or_else(|_| json!({"type": "not JSON"})))
        }
        Message::Binary(_) => Some(json!({"type": "binary"})),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => None,
    }
}

/// What one response says.
struct Turn {
    response_id: Value,
    item_id: Value,
    audio: bool,
    words: Words,
    said: usize,
}

impl Turn {
    fn part(&self) -> Value {
        let text = self
            .words
            .pieces
            .get(..self.said)
            .unwrap_or_default()
            .concat();
        if self.audio {
            json!({"type": "output_audio", "transcript": text})
        } else {
            json!({"type": "output_text", "text": text})
        }
    }

    fn item(&self, status: &str) -> Value {
        let content = if status == "in_progress" {
            json!([])
        } else {
            json!([self.part()])
        };
        json!({
            "id": self.item_id, "object": "realtime.item", "type": "message", "status": status, "role": "assistant",
            "content": content,
        })
    }

    fn of_response(&self, mut event: Value) -> Value {
        event["response_id"] = self.response_id.clone();
        event["output_index"] = json!(0);
        event
    }

    fn place(&self, event: Value) -> Value {
        let mut event = self.of_response(event);
        event["item_id"] = self.item_id.clone();
        event["content_index"] = json!(0);
        event
    }
}
