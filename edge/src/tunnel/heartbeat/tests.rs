//! The detector's rules, one by one, and with anything a peer may say.

use proptest::prelude::*;
use vector_proto::tunnel::beat::{BEAT_BYTES, Beat, Hearing};

use super::{
    simulation::{Line, Loss, MS, World, config},
    *,
};

fn quiet(seed: u64) -> World {
    World::new(seed, Line::new(MS * 40, Duration::ZERO, Loss::None)).active()
}

#[test]
fn a_path_is_up_only_if_both_directions_are() {
    for line in [0, 1] {
        let mut world = quiet(line as u64);
        world.cut(&[line], true);
        world.until(State::Down);
        let causes: Vec<Cause> = world
            .ends
            .iter()
            .map(|end| end.transitions[1].1.cause)
            .collect();
        // Whoever is deaf hears silence; the other is told.
        assert_eq!(causes[1 - line], Cause::Silence);
        assert_eq!(causes[line], Cause::Unheard);
        world.cut(&[line], false);
        world.until(State::Up);
    }
}

#[test]
fn a_path_that_flaps_must_be_clean_for_longer_each_time() {
    let mut world = quiet(1);
    let mut back = Vec::new();
    for _ in 0..7 {
        world.cut(&[0, 1], true);
        world.until(State::Down);
        world.run(MS * 300);
        world.cut(&[0, 1], false);
        back.push(world.until(State::Up).as_secs());
    }
    assert_eq!(back, [2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(world.ends[0].detector.measures().flaps, 7);
    world.activity(Activity::Cold);
    world.run(Duration::from_secs(3_600));
    world.activity(Activity::Active);
    world.run(Duration::from_secs(2));
    world.cut(&[0, 1], true);
    world.until(State::Down);
    world.cut(&[0, 1], false);
    assert_eq!(world.until(State::Up).as_secs(), 2, "an hour is long");
}

#[test]
fn a_path_on_its_way_back_is_suspect_and_a_cut_starts_the_spell_again() {
    let mut world = quiet(2);
    world.cut(&[0, 1], true);
    world.until(State::Down);
    world.cut(&[0, 1], false);
    world.until(State::Suspect);
    world.run(MS * 1_000);
    world.cut(&[0, 1], true);
    world.until(State::Down);
    world.cut(&[0, 1], false);
    assert!(world.until(State::Up) >= Duration::from_secs(2));
    assert_eq!(world.ends[0].detector.measures().flaps, 1);
}

#[test]
fn a_short_gap_makes_a_path_suspect_for_a_short_time() {
    let mut world = quiet(3);
    world.cut(&[0, 1], true);
    world.run(MS * 40);
    world.cut(&[0, 1], false);
    world.until(State::Suspect);
    let back = world.until(State::Up);
    assert!(back < MS * 400, "{back:?}");
    assert_eq!(world.ends[0].alarms(State::Down), 0);
}

#[test]
fn rhythm_follows_activity_of_either_end() {
    let mut world = quiet(4);
    let rate = |world: &mut World| {
        let before = world.ends[0].detector.measures().beats_out;
        world.run(Duration::from_secs(10));
        world.ends[0].detector.measures().beats_out - before
    };
    assert!((999..=1001).contains(&rate(&mut world)));
    world.activity(Activity::Cold);
    world.run(Duration::from_secs(1));
    assert!((9..=11).contains(&rate(&mut world)));
    // One end alone sets the pace of both, at once.
    let now = world.instant();
    world.ends[1].detector.activity(now, Activity::Active);
    world.run(MS * 200);
    assert!((999..=1001).contains(&rate(&mut world)));
    world.activity(Activity::Standby);
    world.run(Duration::from_secs(1));
    assert!((199..=201).contains(&rate(&mut world)));
    let alarms = world.ends.iter().flat_map(|end| &end.transitions).count();
    assert_eq!(alarms, 0, "changes of rhythm are no silence");
}

#[test]
fn a_cold_path_that_is_dead_is_found_when_it_is_used() {
    let mut world = quiet(5);
    world.activity(Activity::Cold);
    world.run(Duration::from_secs(20));
    world.cut(&[0], true);
    world.run(MS * 100);
    assert_eq!(world.states(), [State::Up; 2]);
    let (now, at) = (world.instant(), world.now);
    world.ends[0].detector.activity(now, Activity::Active);
    world.run(Duration::from_secs(1));
    let found = world.ends[0].first(State::Down, at).unwrap() - at;
    assert!(found <= MS * (80 + 60), "{found:?}");
    assert_eq!(world.ends[0].transitions[0].1.cause, Cause::Unanswered);
}

#[test]
fn what_is_measured_is_what_the_lines_do() {
    let line = Line::new(MS * 40, Duration::ZERO, Loss::None);
    let mut world = World::new(6, line).active();
    world.lines[0].loss = Loss::Independent(0.1);
    world.lines[1].loss = Loss::Independent(0.02);
    let now = world.instant();
    world.ends[1].detector.says(now, 321, false);
    world.run(Duration::from_secs(120));
    let near = world.ends[0].detector.measures();
    let rtt = near.rtt.unwrap();
    assert!(rtt >= MS * 80 && rtt <= MS * 81, "{rtt:?}");
    assert!((0.07..0.13).contains(&near.loss_out), "{}", near.loss_out);
    assert!((0.01..0.04).contains(&near.loss_in), "{}", near.loss_in);
    assert_eq!(near.peer_load, 321);
    let far = world.ends[1].detector.measures();
    assert!((0.07..0.13).contains(&far.loss_in), "{}", far.loss_in);
}

#[test]
fn any_packet_is_life() {
    let mut world = quiet(7);
    let detector = &mut world.ends[0].detector;
    let start = detector.next_deadline();
    for step in 1..200 {
        let at = start + MS * 10 * step;
        detector.any_packet(at - MS * 10);
        while detector.next_deadline() <= at {
            detector.poll(detector.next_deadline());
        }
        assert_eq!(detector.state(), State::Up);
    }
}

#[test]
fn draining_is_told_and_taken_back() {
    let mut world = quiet(8);
    let now = world.instant();
    world.ends[1].detector.says(now, 0, true);
    world.until(State::Draining);
    let now = world.instant();
    world.ends[1].detector.says(now, 0, false);
    world.until(State::Up);
    assert_eq!(world.ends[0].transitions[0].1.cause, Cause::Drain);
}

fn beat_of(epoch: u64, seq: u32) -> Beat {
    Beat {
        epoch,
        seq,
        sent_us: 0,
        echo: None,
        received: 0,
        hearing: Hearing::Hears,
        draining: false,
        interval_ms: 10,
        desired_ms: 10,
        required_ms: 10,
        load: 0,
    }
}

#[test]
fn a_restart_is_told_and_the_old_process_ignored() {
    let now = Instant::now();
    let mut detector = Detector::new(config(1, Duration::ZERO), now);
    detector.heard(now, &beat_of(5, 900)).unwrap();
    assert!(!detector.poll(now).restarted);
    detector.heard(now + MS, &beat_of(6, 1)).unwrap();
    assert!(detector.poll(now + MS).restarted);
    assert_eq!(
        detector.heard(now + MS, &beat_of(5, 901)),
        Err(Refused::Old)
    );
    detector.reconnected(now + MS);
    detector.heard(now + MS * 2, &beat_of(6, 1)).unwrap();
    assert!(
        !detector.poll(now + MS * 2).restarted,
        "the same process on a new connection"
    );
    detector.reconnected(now + MS * 3);
    detector.heard(now + MS * 3, &beat_of(2, 1)).unwrap();
    assert!(detector.poll(now + MS * 3).restarted, "and it counts anew");
    assert_eq!(detector.measures().restarts, 2);
}

#[test]
fn what_a_path_lost_is_measured_anew_over_a_new_connection() {
    let now = Instant::now();
    let mut detector = Detector::new(config(1, Duration::ZERO), now);
    for seq in [1, 2, 12] {
        detector.heard(now, &beat_of(1, seq)).unwrap();
    }
    assert!(detector.measures().loss_in > 0.5);
    detector.reconnected(now + MS);
    assert_eq!(detector.measures().loss_in, 0.0);
    for seq in 1..=4 {
        detector.heard(now + MS * 2, &beat_of(1, seq)).unwrap();
    }
    let measures = detector.measures();
    assert_eq!((measures.loss_in, measures.loss_out), (0.0, 0.0));
}

#[test]
fn replayed_and_made_up_beats_are_no_life() {
    let now = Instant::now();
    let mut detector = Detector::new(config(1, Duration::ZERO), now);
    let good = beat_of(5, u32::MAX);
    detector.heard(now, &good).unwrap();
    detector.poll(now);
    let mut at = now;
    while detector.state() != State::Down {
        at = detector.next_deadline().max(at);
        let made_up = Beat {
            seq: 7,
            echo: Some(Echo {
                seq: 1_000_000,
                sent_us: 0,
                hold_us: 0,
            }),
            ..good
        };
        assert_eq!(detector.heard(at, &good), Err(Refused::Old));
        assert_eq!(
            detector.heard(at, &made_up),
            Err(Refused::Unsent(1_000_000))
        );
        detector.poll(at);
    }
    assert!(at - now < MS * 60);
    // The number wraps.
    detector.heard(at, &beat_of(5, 0)).unwrap();
}

#[test]
fn a_path_that_was_down_stays_suspect_over_a_new_connection() {
    let mut world = quiet(9);
    world.cut(&[0, 1], true);
    world.until(State::Down);
    world.cut(&[0, 1], false);
    let now = world.instant();
    for end in &mut world.ends {
        end.detector.reconnected(now);
        assert_eq!(end.detector.state(), State::Suspect);
    }
    let back = world.until(State::Up);
    assert!(back >= Duration::from_secs(2), "{back:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a peer sends and whenever, the detector neither panics nor spins, and sends no faster than agreed.
    #[test]
    fn a_peer_can_say_anything(
        script in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), BEAT_BYTES..=BEAT_BYTES), 0_u64..200_000, 0_u8..6),
            1..200,
        ),
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut detector = Detector::new(config(1, Duration::ZERO), now);
        let (mut polls, mut beats) = (0_u64, 0_u64);
        for (mut bytes, micros, what) in script {
            now += Duration::from_micros(micros);
            // Mostly well-formed, so that it gets past the reading.
            bytes[0] = 1;
            bytes[1] &= 0x0f;
            for at in [4, 6, 8] {
                bytes[at] &= 0x1f;
                bytes[at + 1] |= 1;
            }
            match what {
                0 => detector.any_packet(now),
                1 => detector.activity(now, Activity::Active),
                2 => detector.activity(now, Activity::Cold),
                3 => detector.reconnected(now),
                // A clock that runs backwards.
                4 => { detector.poll(start); }
                _ => if let Ok(beat) = Beat::decode(&bytes) {
                    let _ = detector.heard(now, &beat);
                },
            }
            loop {
                let actions = detector.poll(now);
                polls += 1;
                beats += u64::from(actions.send.is_some());
                if detector.next_deadline() > now {
                    break;
                }
            }
            let _ = detector.measures();
        }
        prop_assert!(polls <= 200 * 4, "{} polls", polls);
        let passed = u64::try_from((now - start).as_millis()).unwrap();
        prop_assert!(beats <= passed + 200, "{} beats in {} ms", beats, passed);
    }

    /// Under any weather, once it has passed, both ends are up in the end, and agree.
    #[test]
    fn after_the_storm_both_are_up(seed in any::<u64>(), cuts in prop::collection::vec((0_usize..3, 1_u32..400), 1..12)) {
        let mut world = World::new(seed, Line::new(MS * 30, MS, Loss::Independent(0.02))).active();
        for (which, ms) in cuts {
            let lines: &[usize] = [&[0][..], &[1], &[0, 1]][which];
            world.cut(lines, true);
            world.run(MS * ms);
            world.cut(lines, false);
            world.run(MS * 50);
        }
        world.lines.iter_mut().for_each(|line| line.loss = Loss::None);
        let back = world.until(State::Up);
        prop_assert!(back <= Duration::from_secs(62), "{:?}", back);
    }
}
