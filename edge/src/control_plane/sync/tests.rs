//! One stream with a control that is made up.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use http_body::Frame;
use http_body_util::StreamBody;
use ring::digest::{SHA256, digest};
use tokio::sync::oneshot;
use tonic::{Status, codec::DecodeBuf};

use super::*;
use crate::identity::StateKeys;

struct Events;

impl tonic::codec::Decoder for Events {
    type Item = ControlEvent;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<ControlEvent>, Status> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        ControlEvent::decode(bytes)
            .map(Some)
            .map_err(|bad| Status::internal(bad.to_string()))
    }
}

/// A stream that says this, and then nothing.
fn saying(event: control_event::Event) -> Streaming<ControlEvent> {
    let message = ControlEvent { event: Some(event) }.encode_to_vec();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    let said = futures_util::stream::iter([Ok::<_, Status>(Frame::data(frame.freeze()))]);
    let body = StreamBody::new(said.chain(futures_util::stream::pending()));
    Streaming::new_request(Events, body, None, None)
}

fn snapshot(revision: u64) -> v1::Snapshot {
    let mut snapshot = v1::Snapshot {
        revision,
        ..v1::Snapshot::default()
    };
    let sum = digest(&SHA256, &snapshot.encode_to_vec());
    snapshot.digest = Bytes::copy_from_slice(sum.as_ref());
    snapshot
}

#[tokio::test]
async fn a_stream_that_belongs_elsewhere_is_left_when_what_it_brought_is_in_force_and_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:9").connect_lazy();
    let registration = Registration {
        register: v1::Register::default(),
        state_dir: dir.path().into(),
        keys: StateKeys::of(b"test"),
        keep_credentials: false,
    };
    let (control, service) = ControlPlane::new(channel, registration);
    let node = Node {
        control: &control,
        registration: service.registration,
        outbox: tokio::sync::Mutex::new(service.outbox),
        seats: Mutex::default(),
        in_force: tokio::sync::Mutex::default(),
    };
    node.seats.lock().open(0);
    let other = node.in_force.lock().await;
    let (stop, (elsewhere, look)) = (CancellationToken::new(), oneshot::channel());
    let until = Until {
        stop: &stop,
        elsewhere: async { look.await.unwrap() }.boxed(),
    };
    let (events, _told) = mpsc::channel(EVENTS_MAX);
    let stream = saying(control_event::Event::Snapshot(snapshot(7)));
    let mut held = std::pin::pin!(node.hold(0, &events, stream, until));
    for _ in 0..10 {
        assert!((&mut held).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    elsewhere.send(()).unwrap();
    for _ in 0..10 {
        assert!((&mut held).now_or_never().is_none(), "left in the middle");
        tokio::task::yield_now().await;
    }
    drop(other);
    assert_eq!(held.await, None);
    assert_eq!(control.0.routes.load().revision, 7);
    assert_eq!(snapshot::load(dir.path(), "").revision, 7);
}
