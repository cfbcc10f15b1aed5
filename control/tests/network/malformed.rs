//! Messages that are none: on the door for strangers, for nodes and for operators.

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use tonic::{
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::*;

/// Bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What no message of ours is: each breaks another rule.
fn broken() -> Vec<Bytes> {
    let noise = (0..16 << 10).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80);
    vec![
        Bytes::from_static(b"\xff"),
        Bytes::from_static(b"\x00\x01"),
        Bytes::from_static(b"\x0a\x05ab"),
        Bytes::from_static(b"\x0a\xff\xff\xff\xff\x0f"),
        Bytes::from_static(b"\x0a\x02\xff\xfe"),
        Bytes::from_static(b"\x08\x01"),
        Bytes::from_static(b"\x0f"),
        Bytes::from_static(&[0x80; 12]),
        Bytes::from(vec![0x0b; 10_000]),
        noise.collect(),
    ]
}

async fn send(
    channel: &Channel,
    path: &'static str,
    token: Option<&str>,
    message: Bytes,
) -> Result<Bytes, Status> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static(path);
    let answer = tokio::time::timeout(PATIENCE, grpc.unary(request, path, Raw));
    answer.await.unwrap().map(tonic::Response::into_inner)
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_nothing_else_ends() {
    let control = Control::start().await;
    let invite = control.invite("egress", "e-1").await;
    let channel = dial::dial(&control.url, &control.pin, None).await.unwrap();
    let refused = async |path, token, codes: &[Code]| {
        for message in broken() {
            let told = send(&channel, path, token, message.clone()).await;
            let code = told.as_ref().map_err(Status::code);
            let good = code.is_err_and(|code| codes.contains(&code));
            assert!(
                good,
                "{path}: {:?}: {told:?}",
                &message[..message.len().min(16)]
            );
        }
    };
    let node = [
        "/vector.control.v1.Node/Enroll",
        "/vector.control.v1.Node/Renew",
        "/vector.control.v1.Node/Admit",
        "/vector.control.v1.Node/Sync",
    ];
    for path in node {
        refused(path, None, &[Code::Internal, Code::Unauthenticated]).await;
    }
    let apply = "/vector.control.v1.Admin/Apply";
    refused(apply, None, &[Code::Unauthenticated]).await;
    refused(apply, Some(&control.token), &[Code::Internal]).await;
    let none = "/vector.control.v1.Admin/NoSuchCall";
    refused(none, Some(&control.token), &[Code::Unimplemented]).await;
    // An empty message is one: of nothing.
    let empty = send(&channel, node[0], None, Bytes::new()).await;
    assert_eq!(empty.unwrap_err().code(), Code::InvalidArgument);

    // Over the same connection, and with the invite of before.
    let (key, csr) = request();
    let mut stranger = NodeClient::new(channel.clone());
    let enrolled = stranger.enroll(enrolment(&invite, &csr, "")).await;
    let identity = Identity::new(&enrolled.unwrap().into_inner(), &key);
    let mut client = control.node(&identity).await;
    let mut good = Stream::open(&mut client, 0).await;
    good.snapshot(|_| true).await;
    control.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_what_is_no_message_and_may_be_opened_anew() {
    let control = Control::start().await;
    let identity = control.enroll("ingress", "i-1").await;
    let certificate = (identity.chain.clone(), identity.key.clone_key());
    let dialled = dial::dial(&control.url, &control.pin, Some(certificate));
    let channel = dialled.await.unwrap();
    for message in broken() {
        let register = node_event::Event::Register(pb::Register::default());
        let first = pb::NodeEvent {
            event: Some(register),
        };
        let (up, events) = mpsc::channel(2);
        up.send(first.encode_to_vec().into()).await.unwrap();
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/vector.control.v1.Node/Sync");
        let asked = Request::new(ReceiverStream::new(events));
        let mut down = grpc.streaming(asked, path, Raw).await.unwrap().into_inner();
        assert!(down.message().await.unwrap().is_some(), "it is open");
        up.send(message).await.unwrap();
        let ended = async { while let Ok(Some(_)) = down.message().await {} };
        tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("it ends");
    }
    let mut again = Stream::open(&mut control.node(&identity).await, 0).await;
    again.snapshot(|_| true).await;
    control.stop().await;
}
