//! Exchanges whose links die under them.

use fastrand::Rng;
use futures_util::FutureExt as _;

use super::*;
use crate::tunnel::{
    end::{Attachment, End},
    link::Link,
};
use vector_proto::tunnel::codec::Entry;

mod ahead;

mod double;

mod drained;

mod mended;

mod opening;

mod passage;

mod silent;

mod stale;

mod ways;

/// One ingress and one egress; tests link them as they like.
struct World {
    ingress: Tunnel,
    far: Tunnel,
    acceptor: Arc<Acceptor>,
    arrivals: mpsc::Receiver<Arrival>,
    relay: Option<(Tunnel, Arc<Acceptor>)>,
    /// The relay's.
    telemetry: Telemetry,
    tasks: TaskTracker,
}

impl World {
    fn new() -> Self {
        let (tasks, far) = (TaskTracker::new(), impatient());
        let (acceptor, arrivals) = egress_of(&far, 7, &tasks);
        Self {
            ingress: Tunnel::default(),
            far,
            acceptor,
            arrivals,
            relay: None,
            telemetry: Telemetry::silent(),
            tasks,
        }
    }

    /// Another link between the two.
    async fn link(&self) -> Arc<Link> {
        link(
            &self.ingress,
            "ingress",
            "egress",
            &self.acceptor,
            &self.tasks,
        )
        .await
    }

    /// A relay between the two; the links of its two hops.
    async fn over_relay(&mut self) -> (Arc<Link>, Arc<Link>) {
        let tunnel = Tunnel::default();
        let acceptor = Acceptor::new(
            tunnel.clone(),
            Arc::new(NoCredentials),
            hello("relay"),
            None,
            Some(Relay::new(tunnel.clone(), self.telemetry.clone()).handler()),
            self.tasks.clone(),
        );
        let next = link(&tunnel, "relay", "egress", &self.acceptor, &self.tasks).await;
        let first = link(&self.ingress, "ingress", "relay", &acceptor, &self.tasks).await;
        let relays = [("egress".into(), vec!["relay".into()])];
        self.ingress.know_relays(relays.into_iter().collect());
        self.relay = Some((tunnel, acceptor));
        (first, next)
    }

    /// A running exchange, from both sides.
    async fn call(&mut self, path: &Path) -> (Call, RequestBody, Answer, ExchangeId) {
        let (exchange, open) = open();
        let mut call = self.ingress.open(path, exchange, &open).await.unwrap();
        call.request.flush().await.unwrap();
        let (body, answer) = self.arrivals.recv().await.unwrap().accept().await.unwrap();
        call.response.accepted().await.unwrap();
        (call, body, answer, exchange)
    }

    fn lose(&self, link: &Arc<Link>) {
        self.ingress.remove(link);
        link.close("test");
    }
}

fn head() -> v1::ResponseHead {
    v1::ResponseHead {
        status: 200,
        ..v1::ResponseHead::default()
    }
}

async fn part(call: &mut Call) -> Bytes {
    match call.response.next().await.unwrap() {
        Part::Data(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

async fn say(answer: &mut Answer, words: &'static str) {
    answer.data(words.into()).await.unwrap();
    answer.flush().await.unwrap();
}

#[tokio::test]
async fn an_answer_goes_on_over_another_link() {
    let mut world = World::new();
    let first = world.link().await;
    let (mut call, _body, mut answer, _) = world.call(&direct_path()).await;
    answer.head(&head());
    say(&mut answer, "one ").await;
    assert_eq!(call.response.head().await.unwrap().status, 200);
    assert_eq!(part(&mut call).await, "one ");
    let second = world.link().await;
    world.lose(&first);
    say(&mut answer, "two ").await;
    assert_eq!(part(&mut call).await, "two ");
    // And back to a third one, when only one side notices.
    let _third = world.link().await;
    second.vitals().set(Condition::Down);
    say(&mut answer, "three").await;
    assert_eq!(part(&mut call).await, "three");
    answer.finish(&v1::Trailers::default()).await.unwrap();
    assert!(matches!(call.response.next().await, Ok(Part::Trailers(_))));
    assert_eq!(call.response.next().await, Ok(Part::End));
    assert!(world.ingress.tally().moved.get() > 0);
    drop(call);
    while !world.far.arrivals().all().is_empty() || second.outstanding() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_egress_that_waits_between_two_tokens_replays_at_once() {
    let mut world = World::new();
    let first = world.link().await;
    let (mut call, _body, mut answer, _) = world.call(&direct_path()).await;
    answer.head(&head());
    say(&mut answer, "what was lost on the way").await;
    // Nobody has read it, so it is unacknowledged; and nothing more is written.
    world.link().await;
    world.lose(&first);
    assert_eq!(call.response.head().await.unwrap().status, 200);
    assert_eq!(part(&mut call).await, "what was lost on the way");
}

#[tokio::test]
async fn the_tail_of_an_answer_that_has_no_writer_is_replayed() {
    let mut world = World::new();
    let first = world.link().await;
    let (mut call, body, mut answer, _) = world.call(&direct_path()).await;
    answer.head(&head());
    answer.data(vec![7; 100_000].into()).await.unwrap();
    let trailers = v1::Trailers {
        object: "made".into(),
        ..v1::Trailers::default()
    };
    answer.finish(&trailers).await.unwrap();
    drop(body);
    world.lose(&first);
    first.closed().await;
    world.link().await;
    call.response.head().await.unwrap();
    let (mut got, mut made) = (0, String::new());
    loop {
        match call.response.next().await.unwrap() {
            Part::Data(bytes) => got += bytes.len(),
            Part::Trailers(trailers) => made = trailers.object,
            Part::End => break,
        }
    }
    assert_eq!((got, made.as_str()), (100_000, "made"));
    while !world.far.arrivals().all().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_the_egress_notices_and_goes_on_unasked() {
    let mut world = World::new();
    world.link().await;
    let (mut call, _body, mut answer, _) = world.call(&direct_path()).await;
    let dead = world.far.accepted_link("ingress").unwrap();
    world.link().await;
    dead.vitals().set(Condition::Down);
    answer.head(&head());
    say(&mut answer, "unasked").await;
    assert_eq!(call.response.head().await.unwrap().status, 200);
    assert_eq!(part(&mut call).await, "unasked");
    assert_eq!(world.ingress.tally().moved.get(), 0);
    while world.far.tally().moved.get() == 0 {
        tokio::task::yield_now().await;
    }
    say(&mut answer, "and again").await;
    assert_eq!(part(&mut call).await, "and again");
}

/// Sends and reads back `total` bytes while links die and come, as the seed says.
async fn chaos(seed: u64, total: usize) {
    let mut world = World::new();
    let mut rng = Rng::with_seed(seed);
    let mut links = vec![world.link().await, world.link().await];
    let with_relay = rng.bool();
    if with_relay {
        world.over_relay().await;
    }
    let path = if with_relay && rng.bool() {
        relay_path()
    } else {
        direct_path()
    };
    let (ingress, mut arrivals) = (world.ingress.clone(), {
        let (_, empty) = mpsc::channel(1);
        std::mem::replace(&mut world.arrivals, empty)
    });
    let work = there_and_back(&ingress, &path, &mut arrivals, total);
    let trouble = async {
        loop {
            for _ in 0..rng.usize(..200) {
                tokio::task::yield_now().await;
            }
            links.push(world.link().await);
            let lost = links.swap_remove(rng.usize(..links.len() - 1));
            match rng.u8(..4) {
                3 => {
                    let far = world.far.accepted_link("ingress");
                    far.inspect(|link| link.vitals().set(Condition::Suspect));
                    lost.vitals().set(Condition::Suspect);
                }
                0 => world.lose(&lost),
                1 => lost.vitals().set(Condition::Down),
                _ => {
                    let far = world.far.accepted_link("ingress");
                    far.inspect(|link| link.vitals().set(Condition::Down));
                }
            }
        }
    };
    let done = async {
        tokio::select! {
            () = work => {}
            () = trouble => {}
        }
    };
    Box::pin(tokio::time::timeout(Duration::from_secs(20), done))
        .await
        .unwrap_or_else(|_| panic!("seed {seed}: stuck"));
}

#[tokio::test]
async fn bodies_survive_any_order_of_deaths() {
    for seed in 0..12 {
        Box::pin(chaos(seed, 2_000_000)).await;
    }
}

#[tokio::test]
async fn a_relay_that_dies_is_left_for_a_direct_link_and_the_other_way_round() {
    let mut world = World::new();
    let (first_hop, next_hop) = world.over_relay().await;
    let (mut call, _body, mut answer, _) = world.call(&relay_path()).await;
    let direct = world.link().await;
    next_hop.close("test");
    answer.head(&head());
    say(&mut answer, "over the direct link").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "over the direct link");
    drop((call, answer));

    let (relay, _) = world.relay.clone().unwrap();
    relay.remove(&next_hop);
    link(&relay, "relay", "egress", &world.acceptor, &world.tasks).await;
    let (mut call, mut body, mut answer, _) = world.call(&direct_path()).await;
    world.lose(&direct);
    answer.head(&head());
    say(&mut answer, "over the relay").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "over the relay");
    call.request.data("and up".into()).await.unwrap();
    call.request.flush().await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "and up");
    drop(first_hop);
}

#[tokio::test]
async fn an_egress_that_was_restarted_has_lost_what_it_had_begun() {
    let mut world = World::new();
    let first = world.link().await;
    let (mut call, _body, _answer, _) = world.call(&direct_path()).await;
    let (restarted, _arrivals) = egress_of(&impatient(), 8, &world.tasks);
    world.lose(&first);
    link(
        &world.ingress,
        "ingress",
        "egress",
        &restarted,
        &world.tasks,
    )
    .await;
    let lost = Failure::Lost(Lost {
        reason: LostReason::Gone,
        accepted: true,
    });
    assert_eq!(call.response.head().await, Err(lost));
}

#[tokio::test]
async fn nobody_moves_reads_or_ends_what_belongs_to_somebody_else() {
    let mut world = World::new();
    world.link().await;
    let (mut call, _body, mut answer, exchange) = world.call(&direct_path()).await;
    let stranger = Tunnel::default();
    let mallory = link(
        &stranger,
        "mallory",
        "egress",
        &world.acceptor,
        &world.tasks,
    )
    .await;
    let resume = Entry::Resume {
        exchange,
        attach_seq: 9,
        response_next: 0,
        request_next: 0,
    };
    let cancel = Entry::Cancel {
        exchange,
        reason: 1,
    };
    let ack = Entry::Ack {
        exchange,
        offset: 1 << 40,
    };
    for entry in [resume, cancel, ack] {
        mallory.say(entry);
    }
    for ingress in ["", "ingress"] {
        let attach = v1::Attach {
            exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
            attach_seq: 3,
            egress: "egress".into(),
            ingress: ingress.into(),
            resume: true,
            ..v1::Attach::default()
        };
        let (mut send, mut receive) = mallory.open_stream().await.unwrap();
        let preamble = codec::message(codec::Kind::Attach, &attach);
        send.write(&mut [preamble]).await.unwrap();
        assert_eq!(receive.read().await, Ok(None), "not a byte");
    }
    assert!(!answer.canceller().is_cancelled());
    answer.head(&head());
    say(&mut answer, "mine").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "mine");
}

#[tokio::test]
async fn a_peer_that_lies_about_offsets_loses_its_exchange_and_nothing_else() {
    let mut world = World::new();
    let link = world.link().await;
    let (_call, _body, mut answer, exchange) = world.call(&direct_path()).await;
    let (mut good, _body, mut good_answer, _) = world.call(&direct_path()).await;
    answer.head(&head());
    answer.flush().await.unwrap();
    link.say(Entry::Ack {
        exchange,
        offset: 1 << 40,
    });
    answer.canceller().cancelled().await;
    good_answer.head(&head());
    say(&mut good_answer, "fine").await;
    good.response.head().await.unwrap();
    assert_eq!(part(&mut good).await, "fine");
}

#[tokio::test]
async fn a_storm_of_attachments_is_cut_short() {
    let mut world = World::new();
    let link = world.link().await;
    let (mut call, _body, mut answer, exchange) = world.call(&direct_path()).await;
    for attach_seq in 1..500 {
        link.say(Entry::Resume {
            exchange,
            attach_seq,
            response_next: 0,
            request_next: 0,
        });
    }
    answer.head(&head());
    say(&mut answer, "still here").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "still here");
}
#[tokio::test]
async fn a_node_keeps_no_more_for_replays_than_its_budget() {
    let mut world = World::new();
    world.link().await;
    world.far.budget().limit(100_000);
    let (mut call, body, mut answer, _) = world.call(&direct_path()).await;
    answer.head(&head());
    let send = async {
        for _ in 0..100 {
            answer.data(vec![1; 20_000].into()).await.unwrap();
        }
        answer.finish(&v1::Trailers::default()).await.unwrap();
    };
    let read = async {
        // The sender comes to a stop by itself, long before its own window is full.
        let (mut most, mut rounds) = (0, 0);
        while rounds < 10_000 {
            tokio::task::yield_now().await;
            most = most.max(world.far.replay_bytes());
            rounds += 1;
        }
        assert!((100_000..150_000).contains(&most), "{most} bytes");
        call.response.head().await.unwrap();
        let mut got = 0;
        while let Part::Data(bytes) = call.response.next().await.unwrap() {
            got += bytes.len();
        }
        assert_eq!(got, 2_000_000);
    };
    tokio::join!(send, read);
    drop((call, body));
    while world.far.replay_bytes() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn offsets_at_the_end_of_all_numbers_are_refused() {
    let mut world = World::new();
    let link = world.link().await;
    let (_call, mut body, _answer, exchange) = world.call(&direct_path()).await;
    let attach = v1::Attach {
        exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
        attach_seq: 3,
        offset: u64::MAX,
        egress: "egress".into(),
        ..v1::Attach::default()
    };
    let (mut send, _receive) = link.open_stream().await.unwrap();
    let mut preamble = codec::message(codec::Kind::Attach, &attach).to_vec();
    preamble.push(0);
    send.write(&mut [preamble.into()]).await.unwrap();
    assert!(body.next().await.is_err());
}

#[tokio::test]
async fn a_late_word_of_a_failed_attempt_does_not_touch_the_next() {
    let mut world = World::new();
    let link = world.link().await;
    let (mut call, _body, mut answer, exchange) = world.call(&direct_path()).await;
    let attach = v1::Attach {
        exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
        attach_seq: 3,
        attempt: 7,
        egress: "egress".into(),
        resume: true,
        ..v1::Attach::default()
    };
    let (mut send, mut receive) = link.open_stream().await.unwrap();
    let preamble = codec::message(codec::Kind::Attach, &attach);
    send.write(&mut [preamble]).await.unwrap();
    assert_eq!(receive.read().await, Ok(None), "not a byte");
    answer.head(&head());
    say(&mut answer, "mine").await;
    call.response.head().await.unwrap();
    assert_eq!(part(&mut call).await, "mine");
}
