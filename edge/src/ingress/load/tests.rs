//! One ingress, one provider, some egress nodes, and what comes of attempts.

use super::{learn::FAILURES_MAX, *};
use crate::control_plane::ProviderRow;

const MS: Duration = Duration::from_millis(1);
const SECOND_US: u64 = 1_000_000;

fn answered(first_byte: Duration) -> Lesson {
    Lesson::Answered {
        first_byte,
        good: true,
    }
}

/// A provider with so many egress nodes, and an ingress that knows nothing of it.
struct World {
    loads: Loads,
    provider: ProviderRow,
}

impl World {
    fn new(egress: usize) -> Self {
        let egress: Vec<Arc<str>> = (0..egress).map(|at| format!("e{at}").into()).collect();
        let provider = ProviderRow {
            name: "p".into(),
            kind: "openai".into(),
            base_url: http::Uri::from_static("https://api.test/v1"),
            allow_private: false,
            draining: egress.iter().map(|_| false).collect(),
            egress,
            connect: None,
            first_byte: None,
            idle: None,
            connections_max: 0,
            probe: None,
            unknown_objects: false,
            balance: "".into(),
        };
        Self {
            loads: Loads::new(Instant::now()),
            provider,
        }
    }

    fn load(&self, at: usize, model: &str) -> Load {
        let provider = &self.provider;
        self.loads.of(&provider.name, &provider.egress[at], model)
    }

    fn tell(&self, at: usize, model: &str, lesson: Lesson, now_us: u64) -> Option<Change> {
        let mut tried = self.load(at, model).enter(now_us);
        let upstream = Upstream {
            provider: &self.provider,
            model,
        };
        self.loads.learn(&mut tried, upstream, lesson, now_us)
    }

    /// Faults until an ejection is due.
    fn fail(&self, at: usize, model: &str, scope: Scope, now_us: u64) -> Option<Change> {
        let told = (0..FAILURES_MAX).map(|_| self.tell(at, model, Lesson::Fault(scope), now_us));
        told.fold(None, |known, new| known.or(new))
    }

    fn standing(&self, at: usize, model: &str, now_us: u64) -> Standing {
        self.load(at, model).standing(now_us)
    }

    fn cost(&self, at: usize, model: &str, now_us: u64) -> f64 {
        self.load(at, model).cost(MS, 1, now_us)
    }

    fn hear(
        &self,
        upstreams: Vec<v1::UpstreamScore>,
        models: Vec<v1::UpstreamScore>,
        now: Instant,
    ) {
        let scores = v1::Scores {
            whole: false,
            upstreams,
            models,
        };
        self.loads.hear(&scores, now);
    }
}

#[test]
fn an_egress_that_is_lost_and_back_is_no_longer_avoided() {
    let world = World::new(1);
    world.load(0, "m").reached_over(1);
    world.tell(0, "m", answered(900 * MS), 0);
    world.tell(0, "m", Lesson::Avoid(Scope::Pair), 0);
    world.load(0, "m").reached_over(1);
    for model in ["m", "never tried"] {
        assert!(world.cost(0, model, 0) > 1e6, "whatever the model");
    }
    world.load(0, "m").reached_over(0);
    world.load(0, "m").reached_over(1);
    assert!(world.cost(0, "m", 0) < 1e4);
}

/// What was wrong may be over before any request could see that the egress was gone.
#[test]
fn what_is_avoided_is_tried_again_after_some_seconds() {
    let world = World::new(2);
    for at in [0, 1] {
        world.load(at, "m").reached_over(1);
        world.tell(at, "m", answered(2 * MS), 0);
    }
    for scope in [Scope::Pair, Scope::Model] {
        let now_us = 100 * SECOND_US;
        world.tell(1, "m", answered(2 * MS), now_us);
        world.tell(0, "m", Lesson::Avoid(scope), now_us);
        let dearer = |later_us| {
            world.cost(0, "m", now_us + later_us) > world.cost(1, "m", now_us + later_us)
        };
        assert!(dearer(0) && dearer(4 * SECOND_US), "{scope:?}");
        assert!(!dearer(5 * SECOND_US), "{scope:?}");
    }
}

#[test]
fn a_peak_counts_at_once_and_is_forgotten() {
    let world = World::new(1);
    world.tell(0, "m", answered(10 * MS), 0);
    let calm = world.cost(0, "m", 0);
    world.tell(0, "m", answered(1000 * MS), 10);
    let peak = world.cost(0, "m", 10);
    assert!(peak > 10.0 * calm);
    let later = world.cost(0, "m", 60_000_000);
    assert!(
        later < calm,
        "a minute later {later} should be below {calm}"
    );
}

#[test]
fn outstanding_work_and_weight_count() {
    let world = World::new(1);
    let load = world.load(0, "m");
    let idle = load.cost(MS, 1, 0);
    // Of whichever model.
    let mark = world.load(0, "n").enter(0);
    assert!((load.cost(MS, 1, 0) - 2.0 * idle).abs() < 1e-6);
    assert!((load.cost(MS, 2, 0) - idle).abs() < 1e-6);
    drop(mark);
    assert!((load.cost(MS, 1, 0) - idle).abs() < 1e-6);
}

#[test]
fn a_pair_is_one_and_the_same_for_all_its_models() {
    let loads = Loads::new(Instant::now());
    let (provider, egress) = (Arc::from("p"), Arc::from("e"));
    let one = loads.of(&provider, &egress, "m");
    let other = loads.of(&provider, &egress, "n");
    assert!(Arc::ptr_eq(&one.pair, &other.pair));
    let turned = loads.of(&egress, &provider, "m");
    assert!(!Arc::ptr_eq(&one.pair, &turned.pair));
}

#[test]
fn half_of_a_provider_may_be_ejected_unless_all_of_it_fails() {
    use Scope::Pair;
    let world = World::new(4);
    let ejected = Some(Change::Ejected(Pair));
    assert_eq!(world.fail(0, "m", Pair, 1), ejected);
    assert_eq!(world.fail(1, "m", Pair, 1), ejected);
    assert_eq!(world.fail(2, "m", Pair, 1), None, "the third of four");
    assert_eq!(world.standing(2, "m", 1), Standing::Good);
    assert_eq!(world.fail(3, "m", Pair, 1), ejected, "nothing of it works");
    for model in ["m", "another"] {
        assert_eq!(world.standing(0, model, 1), Standing::Ejected);
    }
}

#[test]
fn a_model_that_fails_is_ejected_alone_and_at_half_of_its_egress_nodes() {
    use Scope::Model;
    let world = World::new(4);
    world.tell(0, "well", answered(MS), 1);
    let ejected = Some(Change::Ejected(Model));
    assert_eq!(world.fail(0, "dead", Model, 2), ejected);
    assert_eq!(world.fail(1, "dead", Model, 2), ejected);
    assert_eq!(world.fail(2, "dead", Model, 2), None, "the third of four");
    assert_eq!(world.standing(0, "dead", 3), Standing::Ejected);
    assert_eq!(world.standing(2, "dead", 3), Standing::Good);
    for model in ["well", "never tried", ""] {
        assert_eq!(world.standing(0, model, 3), Standing::Good, "{model}");
    }
    assert!(world.cost(0, "well", 3) < 1e4, "no dearer for the dead one");
    assert!(world.cost(2, "dead", 3) > 1e6);
    assert_eq!(world.fail(3, "dead", Model, 3), ejected, "dead everywhere");
}

#[test]
fn what_fails_for_several_models_is_the_provider() {
    use Scope::{Model, Pair};
    let world = World::new(2);
    world.tell(0, "c", answered(MS), 1);
    assert_eq!(world.fail(0, "a", Model, 2), Some(Change::Ejected(Model)));
    assert_eq!(world.fail(0, "b", Model, 3), Some(Change::Ejected(Pair)));
    assert_eq!(world.standing(0, "c", 4), Standing::Ejected);
    assert_eq!(world.standing(1, "c", 4), Standing::Good);

    let world = World::new(2);
    assert_eq!(world.fail(0, "a", Model, 2), Some(Change::Ejected(Model)));
    world.tell(0, "c", answered(MS), 3);
    let own = Some(Change::Ejected(Model));
    assert_eq!(
        world.fail(0, "b", Model, 4),
        own,
        "another answers meanwhile"
    );
    assert_eq!(world.standing(0, "c", 5), Standing::Good);
}

#[test]
fn a_model_that_fails_most_of_the_time_is_ejected_where_it_does_not_elsewhere() {
    let tried = |egress| {
        let world = World::new(egress);
        let turns = (0..60_u64).map(|turn| {
            let lesson = match turn % 4 {
                0 => answered(MS),
                _ => Lesson::Fault(Scope::Model),
            };
            world.tell(0, "m", lesson, turn + 1)
        });
        turns.fold(None, |known, new| known.or(new))
    };
    assert_eq!(tried(2), Some(Change::Ejected(Scope::Model)));
    assert_eq!(tried(1), None, "there is nothing better");
}

#[test]
fn who_fails_its_trial_is_ejected_again_and_who_passes_is_in_use() {
    for scope in [Scope::Pair, Scope::Model] {
        let world = World::new(2);
        assert!(world.fail(0, "m", scope, 1).is_some());
        // A late answer of before the ejection: the failures are no longer in a row.
        world.tell(0, "m", answered(MS), 2);
        let mut now_us = 31 * SECOND_US;
        assert_eq!(world.standing(0, "m", now_us), Standing::HalfOpen);
        let trial = world.load(0, "m").enter(now_us);
        assert_eq!(world.standing(0, "m", now_us), Standing::Ejected);
        world.tell(0, "m", Lesson::Fault(scope), now_us);
        drop(trial);
        assert_eq!(world.standing(0, "m", now_us + 1), Standing::Ejected);
        now_us += 61 * SECOND_US;
        let change = world.tell(0, "m", answered(MS), now_us);
        assert_eq!(change, Some(Change::InUse(scope)));
        assert_eq!(world.standing(0, "m", now_us), Standing::Good);
    }
}

#[test]
fn a_slow_model_says_nothing_of_a_quick_one() {
    let world = World::new(1);
    world.tell(0, "slow", answered(4000 * MS), 1);
    world.tell(0, "quick", answered(50 * MS), 1);
    assert!(world.cost(0, "slow", 2) > 50.0 * world.cost(0, "quick", 2));
    assert!(world.cost(0, "never tried", 2) < 1e4);
}

#[test]
fn what_others_measured_stands_in_until_it_is_old_or_known_here() {
    let world = World::new(1);
    let at = world.loads.start + Duration::from_secs(100);
    let now_us = world.loads.at(at);
    let before = world.cost(0, "m", now_us);
    let row = v1::UpstreamScore {
        provider: "p".to_owned(),
        egress: "e0".to_owned(),
        success_permille: 200,
        first_byte_us: 900_000,
        ..v1::UpstreamScore::default()
    };
    world.hear(vec![row], Vec::new(), at);
    assert!(world.cost(0, "m", now_us) > 100.0 * before);
    assert!(
        world.cost(0, "m", now_us + 900 * SECOND_US) < 2.0 * before,
        "stale"
    );
    world.tell(0, "m", answered(10 * MS), now_us + 1);
    assert!(
        world.cost(0, "m", now_us + 2) < 100.0 * before,
        "known here"
    );
}

#[test]
fn others_word_of_a_model_is_of_that_model() {
    let world = World::new(1);
    let at = world.loads.start + Duration::from_secs(100);
    let now_us = world.loads.at(at);
    let row = |model: &str| v1::UpstreamScore {
        provider: "p".to_owned(),
        egress: "e0".to_owned(),
        model: model.to_owned(),
        ..v1::UpstreamScore::default()
    };
    let pair = v1::UpstreamScore {
        success_permille: 500,
        reached_permille: 1_000,
        ..row("")
    };
    let dead = v1::UpstreamScore {
        ejected_ms: 9_000,
        success_permille: 100,
        ..row("dead")
    };
    world.hear(vec![pair.clone()], vec![dead, row("normal")], at);
    assert_eq!(world.standing(0, "dead", now_us), Standing::Ejected);
    assert_eq!(world.standing(0, "well", now_us), Standing::Good);
    assert!(
        world.cost(0, "well", now_us) < 1e4,
        "the provider is reached"
    );
    assert!(
        world.load(0, "normal").model.is_none(),
        "nothing to remember"
    );
    world.hear(Vec::new(), vec![row("dead")], at);
    assert_eq!(world.standing(0, "dead", now_us), Standing::Good);
    // An older control means everything that is sent there.
    let pair = v1::UpstreamScore {
        reached_permille: 0,
        ..pair
    };
    let well = world.cost(0, "well", now_us);
    world.hear(vec![pair], Vec::new(), at);
    assert!(world.cost(0, "well", now_us) > 1.5 * well);
}

#[test]
fn a_probe_that_works_after_the_last_fault_ends_an_ejection() {
    let world = World::new(2);
    let at = |seconds| world.loads.start + Duration::from_secs(seconds);
    let failed_us = world.loads.at(at(10));
    assert!(world.fail(0, "m", Scope::Pair, failed_us).is_some());
    let probed = |ago_ms| v1::UpstreamScore {
        provider: "p".to_owned(),
        egress: "e0".to_owned(),
        ejected_ms: 20_000,
        probed_ms_ago: Some(ago_ms),
        ..v1::UpstreamScore::default()
    };
    world.hear(vec![probed(4_500)], Vec::new(), at(14));
    let standing = || world.standing(0, "m", world.loads.at(at(15)));
    assert_eq!(standing(), Standing::Ejected, "of before");
    world.hear(vec![probed(500)], Vec::new(), at(15));
    assert_eq!(
        standing(),
        Standing::Ejected,
        "another ingress says so still"
    );
    let well = v1::UpstreamScore {
        ejected_ms: 0,
        ..probed(700)
    };
    world.hear(vec![well], Vec::new(), at(15));
    assert_eq!(standing(), Standing::Good);
    assert!(
        world
            .loads
            .status(at(15))
            .iter()
            .all(|row| row.ejected_ms == 0)
    );
}

#[test]
fn names_that_clients_make_up_are_not_remembered() {
    let world = World::new(1);
    for at in 0..1_000 {
        let no = Lesson::Answered {
            first_byte: MS,
            good: false,
        };
        world.tell(0, &format!("made-up-{at}"), no, at);
    }
    let pair = world.load(0, "").pair;
    assert_eq!(pair.models.all().len(), 0);
    for at in 0..1_000 {
        world.tell(0, &format!("m{at}"), answered(MS), at);
        world.tell(0, &format!("m{at}"), Lesson::Fault(Scope::Model), at);
    }
    assert_eq!(pair.models.all().len(), models::MODELS_MAX);
}

#[test]
fn pairs_are_told_first_and_models_in_bounded_number() {
    let world = World::new(8);
    let at = world.loads.start + Duration::from_secs(1);
    let now_us = world.loads.at(at);
    for egress in 0..8 {
        for model in 0..50 {
            for _ in 0..=model {
                world.tell(egress, &format!("m{model}"), answered(20 * MS), now_us);
            }
        }
        world.tell(egress, "", answered(MS), now_us);
    }
    world.fail(7, "m0", Scope::Model, now_us);
    let rows = world.loads.status(at);
    let (pairs, models): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.model.is_empty());
    assert_eq!((pairs.len(), models.len()), (8, MODELS_TOLD_MAX));
    assert!(rows[..8].iter().all(|row| row.model.is_empty()));
    let told = |egress: &str, model: &str| {
        let mut models = models.iter();
        models.find(|row| (row.egress.as_str(), row.model.as_str()) == (egress, model))
    };
    assert!(told("e7", "m0").is_some_and(|row| row.ejected_ms > 0));
    assert!(told("e0", "m49").is_some() && told("e0", "m0").is_none());
    assert_eq!(pairs[7].reached_permille, 1_000);
    assert!(pairs[7].success_permille < 800 && pairs[7].ejected_ms == 0);
    assert!(
        world
            .loads
            .status(at + 2 * FORGET_SLOWLY)
            .iter()
            .all(|row| row.model.is_empty())
    );
}

#[test]
fn speed_is_learned_from_long_answers_and_counts_a_little() {
    let world = World::new(1);
    world.tell(0, "m", answered(MS), 0);
    let mark = world.load(0, "m").enter(0);
    let model = world.load(0, "m").model.unwrap();
    let known = || model.figures.tokens_per_s();
    mark.streamed(3, 1000 * MS);
    assert_eq!(known(), 0, "three tokens");
    mark.streamed(10_000, MS);
    assert_eq!(known(), 0, "all at once");
    let before = world.cost(0, "m", 0);
    mark.streamed(100, 2000 * MS);
    assert_eq!(known(), 50);
    // Two attempts' worth, since one is outstanding.
    assert!((world.cost(0, "m", 0) - before - 2.0 * 200_000.0).abs() < 1.0);
    assert_eq!(world.load(0, "").pair.figures.tokens_per_s(), 50);
}
