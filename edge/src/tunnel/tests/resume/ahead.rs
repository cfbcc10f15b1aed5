//! Bodies that go ahead of what is asked.

use vector_proto::tunnel::codec::{self, Kind};

use super::*;
use crate::tunnel::Ahead;

impl World {
    /// An exchange whose body goes ahead, from both sides.
    async fn ahead(&mut self) -> (Ahead, RequestBody, Answer, v1::Open) {
        let (exchange, open) = open();
        let open = v1::Open { attempt: 1, ..open };
        let path = direct_path();
        let going = self.ingress.go_ahead(&path, exchange, open.clone());
        let mut going = going.await.unwrap();
        drive(&mut going).await;
        let arrival = self.arrivals.recv().await.unwrap();
        assert!(arrival.open.ahead && arrival.open.request.is_none());
        let (body, answer) = arrival.accept().await.unwrap();
        (going, body, answer, open)
    }

    /// The same from a peer that does with the sequence what it likes.
    async fn lies(&mut self) -> (Call, RequestBody, Answer, v1::Open) {
        let (exchange, open) = open();
        let ahead = v1::Open {
            ahead: true,
            ..open.clone()
        };
        let opened = self.ingress.open(&direct_path(), exchange, &ahead).await;
        let mut call = opened.unwrap();
        call.request.flush().await.unwrap();
        let (body, answer) = self.arrivals.recv().await.unwrap().accept().await.unwrap();
        (call, body, answer, asked(&open))
    }

    /// Another attempt of an exchange.
    async fn again(&self, open: &v1::Open) -> Call {
        let second = v1::Open {
            attempt: 2,
            ..asked(open)
        };
        let exchange = ExchangeId::try_from(&open.exchange[..]).unwrap();
        let opened = self.ingress.open(&direct_path(), exchange, &second).await;
        opened.unwrap()
    }

    fn counted(&self) -> (u64, u64, u64) {
        let tally = self.ingress.tally();
        let (begun, missed) = (&tally.ahead_begun, &tally.ahead_missed);
        (tally.ahead.get(), begun.get(), missed.get())
    }
}

async fn drive(going: &mut Ahead) {
    std::future::poll_fn(|cx| {
        going.poll(cx);
        std::task::Poll::Ready(())
    })
    .await;
}

/// What an OPEN would have asked for.
fn asked(open: &v1::Open) -> v1::Open {
    v1::Open {
        request: Some(v1::RequestHead {
            method: "POST".into(),
            ..v1::RequestHead::default()
        }),
        redundant: true,
        ..open.clone()
    }
}

/// A body in pieces of 3,000 bytes.
fn pieces(count: usize) -> Vec<Bytes> {
    let text: Vec<u8> = (0..count * 3_000).map(|at| (at * 7 % 251) as u8).collect();
    let text = Bytes::from(text);
    (0..count)
        .map(|at| text.slice(at * 3_000..(at + 1) * 3_000))
        .collect()
}

async fn whole(body: &mut RequestBody) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = body.next().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    all
}

/// Sends all of a body of which some went ahead, as if none had.
async fn send(call: &mut Call, pieces: &[Bytes]) {
    for piece in pieces {
        call.request.data(piece.clone()).await.unwrap();
    }
    call.request.end().await.unwrap();
}

#[tokio::test]
async fn what_went_ahead_and_what_follows_is_one_body_over_however_many_links() {
    // The last one is more than may go ahead.
    for (count, before) in [(1, 1), (20, 0), (20, 3), (100, 99), (300, 300)] {
        let mut world = World::new();
        let first = world.link().await;
        let (mut going, mut body, mut answer, open) = world.ahead().await;
        let pieces = pieces(count);
        let (early, late) = pieces[..before].split_at(before / 2);
        early.iter().for_each(|piece| going.push(piece));
        drive(&mut going).await;
        // The path dies with some of it on the way.
        let _second = world.link().await;
        world.lose(&first);
        late.iter().for_each(|piece| going.push(piece));
        let reading = async {
            let head = body.head().await.unwrap();
            (head, whole(&mut body).await)
        };
        let sending = async {
            drive(&mut going).await;
            let mut call = going.begin(&asked(&open)).unwrap();
            send(&mut call, &pieces).await;
            call
        };
        let ((came, read), mut call) = tokio::join!(reading, sending);
        assert_eq!(came, asked(&open));
        assert!(read == pieces.concat(), "{count} pieces, {before} before");
        // The head told both sides.
        let mut ends = world.ingress.calls().all();
        ends.extend(world.far.arrivals().all());
        assert!(ends.len() == 2 && ends.iter().all(|end| end.is_redundant()));
        answer.head(&head());
        say(&mut answer, "whole").await;
        call.response.head().await.unwrap();
        assert_eq!(part(&mut call).await, "whole");
        assert_eq!(world.counted(), (1, 1, 0));
    }
}

#[tokio::test]
async fn what_is_given_up_before_its_head_is_gone_on_both_sides() {
    let mut world = World::new();
    let link = world.link().await;
    let (mut going, mut body, answer, _) = world.ahead().await;
    going.push(&Bytes::from(vec![1; 100_000]));
    drive(&mut going).await;
    drop(going);
    let lost = body.head().await.unwrap_err();
    assert_eq!(lost.reason, LostReason::Cancelled);
    assert!(answer.canceller().is_cancelled());
    drop((body, answer));
    assert_eq!(world.counted(), (1, 0, 1));
    assert!(world.far.arrivals().all().is_empty() && world.ingress.calls().all().is_empty());
    while link.outstanding() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.ingress.replay_bytes(), 0);
}

/// Its cancellation may come later, or be lost with its link.
#[tokio::test]
async fn a_later_attempt_takes_the_place_of_one_without_a_head() {
    let mut world = World::new();
    world.link().await;
    let (mut going, mut body, _answer, open) = world.ahead().await;
    going.push(&"never asked for".into());
    drive(&mut going).await;
    let mut call = world.again(&open).await;
    send(&mut call, &["asked for".into()]).await;
    let arrival = world.arrivals.recv().await.unwrap();
    assert_eq!(arrival.open.attempt, 2);
    let lost = body.head().await.unwrap_err();
    assert_eq!(lost.reason, LostReason::Cancelled);
    let (mut body, mut answer) = arrival.accept().await.unwrap();
    drop(going);
    assert_eq!(whole(&mut body).await, b"asked for");
    answer.head(&head());
    answer.finish(&v1::Trailers::default()).await.unwrap();
    assert_eq!(call.response.head().await.unwrap().status, 200);
}

#[tokio::test]
async fn who_has_its_head_is_given_up_for_nobody() {
    let mut world = World::new();
    world.link().await;
    let (mut going, mut body, _answer, open) = world.ahead().await;
    drive(&mut going).await;
    let mut first = going.begin(&asked(&open)).unwrap();
    first.request.flush().await.unwrap();
    body.head().await.unwrap();
    let mut call = world.again(&open).await;
    call.request.flush().await.unwrap();
    let Err(Failure::Refused(refused)) = call.response.accepted().await else {
        panic!("it runs")
    };
    assert_eq!(refused.code, "protocol_error");
    send(&mut first, &["the first goes on".into()]).await;
    assert_eq!(whole(&mut body).await, b"the first goes on");
}

#[tokio::test]
async fn a_refusal_before_the_head_is_heard_and_nothing_can_begin() {
    let mut world = World::new();
    world.link().await;
    let (exchange, open) = open();
    let path = direct_path();
    let going = world.ingress.go_ahead(&path, exchange, open.clone());
    let mut going = going.await.unwrap();
    drive(&mut going).await;
    let arrival = world.arrivals.recv().await.unwrap();
    arrival.refuse(v1::Refused::default()).await;
    while !going.is_lost() {
        tokio::task::yield_now().await;
        drive(&mut going).await;
    }
    assert!(going.begin(&asked(&open)).is_none());
    assert_eq!(world.counted(), (1, 0, 1));
}

#[tokio::test]
async fn only_a_direct_path_to_who_takes_it_is_good_for_it() {
    let mut world = World::new();
    let ahead = async |world: &World, path: &Path| {
        let (exchange, open) = open();
        world.ingress.go_ahead(path, exchange, open).await.is_some()
    };
    assert!(!ahead(&world, &direct_path()).await, "no link");
    world.over_relay().await;
    assert!(!ahead(&world, &relay_path()).await);
    let first = world.link().await;
    assert!(ahead(&world, &direct_path()).await);
    first.vitals().set(Condition::Suspect);
    assert!(!ahead(&world, &direct_path()).await);
    // An egress of before.
    let (tasks, far) = (TaskTracker::new(), impatient());
    let me = v1::Hello {
        takes_ahead: false,
        ..hello("egress")
    };
    let handler: ArrivalHandler = Arc::new(|_| Box::pin(async {}));
    let credentials = Arc::new(NoCredentials);
    let acceptor = Acceptor::new(far, credentials, me, Some(handler), None, tasks.clone());
    world.ingress = Tunnel::default();
    link(&world.ingress, "ingress", "egress", &acceptor, &tasks).await;
    assert!(!ahead(&world, &direct_path()).await);
}

#[tokio::test]
async fn who_breaks_the_rules_is_found_out() {
    let mut world = World::new();
    world.link().await;
    let broken = |lost: Lost, kind: Kind| {
        let LostReason::Protocol(error) = lost.reason else {
            panic!("{lost:?}")
        };
        assert!(error.to_string().contains(&format!("{kind:?}")), "{error}");
    };
    // No head at all.
    let (mut call, mut body, _answer, _) = world.lies().await;
    call.request.data("body".into()).await.unwrap();
    call.request.end().await.unwrap();
    broken(body.head().await.unwrap_err(), Kind::End);
    // One that is none.
    let (mut call, mut body, _answer, _) = world.lies().await;
    let mut garbage = bytes::BytesMut::new();
    codec::put_header(&mut garbage, Kind::Head, 3);
    garbage.extend_from_slice(&[0xff; 3]);
    call.request.half.frame(garbage.freeze());
    call.request.flush().await.unwrap();
    broken(body.head().await.unwrap_err(), Kind::Head);
    // Two of them.
    let (mut call, mut body, _answer, asked) = world.lies().await;
    for _ in 0..2 {
        call.request.ask(&asked);
    }
    call.request.flush().await.unwrap();
    assert_eq!(body.head().await.unwrap(), asked);
    broken(body.next().await.unwrap_err(), Kind::Head);
    // More than may wait.
    let (mut call, mut body, _answer, _) = world.lies().await;
    let sending = async {
        for _ in 0..20 {
            // It ends when the other side reads no further.
            let _ = call.request.data(vec![1; 50_000].into()).await;
        }
    };
    let reading = async {
        let lost = body.head().await.unwrap_err();
        drop(body);
        lost
    };
    let ((), lost) = tokio::join!(sending, reading);
    broken(lost, Kind::Data);
}

/// A client may send its body byte by byte.
#[tokio::test]
async fn small_pieces_take_no_more_memory_than_large_ones() {
    let mut world = World::new();
    world.link().await;
    let (mut going, mut body, _answer, open) = world.ahead().await;
    let (all, piece) = (20_000, Bytes::from_static(b"x"));
    for _ in 0..all {
        going.push(&piece);
    }
    let reading = async {
        body.head().await.unwrap();
        assert!(body.before.len() < 100, "{} pieces", body.before.len());
        whole(&mut body).await
    };
    let sending = async {
        let mut call = going.begin(&asked(&open)).unwrap();
        let went = call.request.ahead;
        send(&mut call, &vec![piece.clone(); all]).await;
        (went, call)
    };
    let (read, (went, _call)) = tokio::join!(reading, sending);
    assert_eq!(read.len(), all);
    assert!(went < 8_000, "{went}");
}
