//! Requests that lost some of what was sent, and are whole by repair symbols.

use vector_proto::tunnel::codec;

use super::*;
use crate::tunnel::repair::{datagrams, hear};

/// A body in two pieces, of which the second is lost; and the repair symbols of all of it.
fn request(exchange: ExchangeId) -> ([Bytes; 2], Vec<Bytes>) {
    let text: Vec<u8> = (0..40_000_u32).map(|at| (at * 7 % 251) as u8).collect();
    let pieces = [&text[..32_000], &text[32_000..]].map(Bytes::copy_from_slice);
    let mut sequence = Vec::new();
    for piece in &pieces {
        sequence.extend([codec::data_header(piece.len()), piece.clone()]);
    }
    sequence.push(codec::END);
    let repairs = datagrams((exchange, 0), 0, &sequence, 0.1, 1_350);
    assert!(repairs.len() > 5);
    (pieces, repairs)
}

impl World {
    /// An exchange whose request may be mended, of which the first piece has arrived.
    async fn mendable(&mut self, exchange: ExchangeId, first: &Bytes) -> (Call, RequestBody) {
        let open = v1::Open {
            exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
            repaired: true,
            ..open().1
        };
        let path = direct_path();
        let mut call = self.ingress.open(&path, exchange, &open).await.unwrap();
        call.request.data(first.clone()).await.unwrap();
        call.request.flush().await.unwrap();
        let arrival = self.arrivals.recv().await.unwrap();
        let (body, answer) = arrival.accept().await.unwrap();
        self.tasks.spawn(async move {
            answer.canceller().cancelled().await;
            drop(answer);
        });
        (call, body)
    }
}

async fn read(body: &mut RequestBody) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = body.next().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    all
}

#[tokio::test]
async fn what_never_comes_is_computed() {
    let mut world = World::new();
    world.link().await;
    let exchange = ExchangeId::fresh();
    let ([first, second], repairs) = request(exchange);
    let (mut call, mut body) = world.mendable(exchange, &first).await;
    let link = world.far.accepted_link("ingress").unwrap();
    repairs.iter().for_each(|repair| hear(&link, repair));
    assert_eq!(read(&mut body).await, [first, second.clone()].concat());
    assert_eq!(world.far.tally().mended.get(), 1);
    // It comes after all, and changes nothing.
    call.request.data(second).await.unwrap();
    call.request.end().await.unwrap();
    assert_eq!(body.next().await, Ok(None));
}

#[tokio::test]
async fn symbols_may_come_before_their_exchange() {
    let mut world = World::new();
    world.link().await;
    let exchange = ExchangeId::fresh();
    let ([first, second], repairs) = request(exchange);
    let link = world.far.accepted_link("ingress").unwrap();
    repairs.iter().for_each(|repair| hear(&link, repair));
    let (_call, mut body) = world.mendable(exchange, &first).await;
    assert_eq!(read(&mut body).await, [first, second].concat());
}

#[tokio::test]
async fn who_lies_mends_nothing_and_breaks_nothing() {
    let mut world = World::new();
    world.link().await;
    let me = hello("other");
    link_as(&world.ingress, me, "egress", &world.acceptor, &world.tasks).await;
    let exchange = ExchangeId::fresh();
    let ([first, second], repairs) = request(exchange);
    let (mut call, mut body) = world.mendable(exchange, &first).await;
    let link = world.far.accepted_link("ingress").unwrap();
    let other = world.far.accepted_link("other").unwrap();
    hear(&link, &Bytes::from_static(b"no repair symbols"));
    // Somebody else's, of another attempt, of no exchange at all.
    repairs.iter().for_each(|repair| hear(&other, repair));
    let (_, of_nothing) = request(ExchangeId::fresh());
    of_nothing.iter().for_each(|repair| hear(&link, repair));
    let other_attempt = datagrams((exchange, 5), 0, &[vec![0; 40_000].into()], 0.1, 1_350);
    other_attempt.iter().for_each(|repair| hear(&link, repair));
    // Of other bytes than those that came: what is computed is not what the checksum is of.
    let wrong = datagrams((exchange, 0), 0, &[vec![1; 40_008].into()], 0.1, 1_350);
    wrong.iter().for_each(|repair| hear(&link, repair));
    call.request.data(second.clone()).await.unwrap();
    call.request.end().await.unwrap();
    assert_eq!(read(&mut body).await, [first, second].concat());
    assert_eq!(world.far.tally().mended.get(), 0);
}
