//! What is told of a link.

use std::time::Duration;

use vector_proto::control::v1::{LinkState, LinkStatus};

use crate::tunnel::{Condition, Link};

pub(super) fn of(link: &Link) -> LinkStatus {
    let state = match (link.condition(), link.draining()) {
        _ if link.is_down() => LinkState::Down,
        (Condition::Down, _) => LinkState::Down,
        (_, true) => LinkState::Draining,
        (Condition::Suspect, false) => LinkState::Suspect,
        (Condition::Up, false) => LinkState::Up,
    };
    let (sent_packets, lost_packets) = link.packets();
    let measures = link.vitals().measures();
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let ppm = |share: f32| (share * 1e6) as u32;
    LinkStatus {
        peer: link.peer.to_string(),
        address: link.address.to_string(),
        local_address: link
            .local_address()
            .map_or_else(String::new, |at| at.to_string()),
        state: state.into(),
        rtt_us: micros(measures.rtt.unwrap_or_else(|| link.rtt())),
        lost_packets,
        sent_packets,
        jitter_us: micros(measures.jitter),
        loss_out_ppm: ppm(measures.loss_out),
        loss_in_ppm: ppm(measures.loss_in),
        flaps: measures.flaps,
        heartbeats_sent: measures.beats_out,
        heartbeats_heard: measures.beats_in,
        delivery_bytes_per_s: link.delivery(),
        connection: link.connection_number,
    }
}
