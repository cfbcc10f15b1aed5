//! A detour between real sockets: what comes through, when, and what does not.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use super::{Detour, Way};
use crate::{Fate, Line};

/// How long anything here may take, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(20);

fn end() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (count, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..count].to_vec(), from)
}

fn wait_for(detour: &Detour, so: impl Fn(&Detour) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so(detour) {
        assert!(Instant::now() < deadline, "{:?}", detour.counters());
        std::thread::yield_now();
    }
}

#[test]
fn packets_go_there_and_back_unchanged_and_never_early() {
    let (target, target_at) = end();
    let detour = Detour::to(target_at, "delay_ms=20", 1).unwrap();
    let (one, _) = end();
    let (two, _) = end();
    for (sender, text) in [(&one, b"one".as_slice()), (&two, b"two")] {
        let sent = Instant::now();
        sender.send_to(text, detour.address()).unwrap();
        let (got, seen_as) = receive(&target);
        assert_eq!(got, text);
        assert!(sent.elapsed() >= Duration::from_millis(20));
        let answered = Instant::now();
        target.send_to(&got, seen_as).unwrap();
        assert_eq!(receive(sender), (text.to_vec(), detour.address()));
        assert!(answered.elapsed() >= Duration::from_millis(20));
    }
    let [there, back] = detour.counters();
    assert_eq!((there.out_packets, back.out_packets), (2, 2));
}

#[test]
fn chance_is_the_models_own() {
    let (_target, target_at) = end();
    let conditions = "loss=30%";
    let detour = Detour::to(target_at, conditions, 7).unwrap();
    let (sender, _) = end();
    let mut model = Line::new(conditions.parse().unwrap(), 7);
    let mut lost = 0;
    for sent in 1..=500 {
        sender.send_to(b"x", detour.address()).unwrap();
        // One by one, so that no socket's buffer overflows.
        wait_for(&detour, |detour| detour.counters()[0].in_packets == sent);
        lost += u64::from(model.admit(sent, 1) == Fate::Lost);
    }
    assert_eq!(detour.counters()[0].lost, lost);
    assert!((100..200).contains(&lost), "{lost}");
}

#[test]
fn a_cut_swallows_what_is_under_way_and_can_be_one_way() {
    let (target, target_at) = end();
    let detour = Detour::to(target_at, "delay_ms=200", 1).unwrap();
    let (sender, _) = end();
    sender.send_to(b"lost under way", detour.address()).unwrap();
    wait_for(&detour, |detour| detour.counters()[0].in_flight == 1);
    detour.set(Way::There, "blackhole=on").unwrap();
    sender.send_to(b"lost at once", detour.address()).unwrap();
    wait_for(&detour, |detour| detour.counters()[0].blackholed == 2);
    detour.set(Way::There, "blackhole=off delay_ms=0").unwrap();
    sender.send_to(b"mended", detour.address()).unwrap();
    let (got, seen_as) = receive(&target);
    assert_eq!(got, b"mended");
    detour.set(Way::Back, "blackhole=on").unwrap();
    target.send_to(b"lost", seen_as).unwrap();
    wait_for(&detour, |detour| detour.counters()[1].blackholed == 1);
    detour.set(Way::Back, "blackhole=off delay_ms=0").unwrap();
    target.send_to(b"back", seen_as).unwrap();
    assert_eq!(receive(&sender).0, b"back");
}

#[test]
fn a_detour_outlives_a_target_that_is_not_there_and_ends_when_dropped() {
    let (gone, target_at) = end();
    drop(gone);
    let detour = Detour::to(target_at, "", 1).unwrap();
    let (sender, _) = end();
    for sent in 1..=3 {
        sender.send_to(b"nobody", detour.address()).unwrap();
        wait_for(&detour, |detour| detour.counters()[0].out_packets == sent);
    }
    let target = UdpSocket::bind(target_at).unwrap();
    target.set_read_timeout(Some(PATIENCE)).unwrap();
    sender.send_to(b"somebody", detour.address()).unwrap();
    assert_eq!(receive(&target).0, b"somebody");
    let address = detour.address();
    drop(detour);
    assert!(UdpSocket::bind(address).is_ok(), "its port is free again");
}

#[test]
fn impossible_conditions_do_not_begin() {
    let (_target, target_at) = end();
    assert!(Detour::to(target_at, "loss=200%", 1).is_err());
    let detour = Detour::to(target_at, "", 1).unwrap();
    assert!(detour.set(Way::Both, "loss=-1").is_err());
}
