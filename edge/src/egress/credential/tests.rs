//! Which key a call takes, and what the answers teach, without a socket or a clock.

use std::time::SystemTime;

use http::HeaderMap;

use super::*;

const ANY: Wish<'_> = Wish {
    avoid: None,
    affinity: 0,
    prompt_bytes: Some(0),
};

fn take(pool: &Pool, at: Instant) -> Result<Permit, NoKey> {
    pool.take("acme", ANY, at)
}

fn ok(permit: &Permit, at: Instant) {
    permit.accepted(&HeaderMap::new(), at);
}

fn pool(credentials: &[(&str, &str, u32)], now: Instant) -> Pool {
    let pool = Pool::new(now);
    pool.replace(&sent(credentials));
    pool
}

fn sent(credentials: &[(&str, &str, u32)]) -> v1::Credentials {
    let credentials = credentials
        .iter()
        .map(|(name, secret, weight)| v1::Credential {
            name: (*name).into(),
            provider: "acme".into(),
            secret: (*secret).into(),
            weight: *weight,
            ..v1::Credential::default()
        })
        .collect();
    v1::Credentials {
        revision: 1,
        credentials,
        ..v1::Credentials::default()
    }
}

#[test]
fn calls_spread_by_weight() {
    let now = Instant::now();
    let pool = pool(&[("a", "1", 1), ("b", "2", 3)], now);
    let permits: Vec<_> = (0..40).map(|_| take(&pool, now).unwrap()).collect();
    let of_b = permits
        .iter()
        .filter(|permit| &**permit.key().name() == "b");
    assert_eq!(of_b.count(), 30);
    drop(permits);
    assert!(pool.status(now).iter().all(|status| status.in_flight == 0));
}

#[test]
fn a_limited_key_rests_and_doubles_when_no_time_is_named() {
    let now = Instant::now();
    let pool = pool(&[("a", "1", 1)], now);
    let none = HeaderMap::new();
    let mut at = now;
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        let permit = take(&pool, at).unwrap();
        let rest = permit.limited(&none, at, SystemTime::UNIX_EPOCH);
        assert_eq!(rest, Duration::from_secs(seconds));
        assert_eq!(take(&pool, at).err(), Some(NoKey::Resting(rest)));
        at += rest;
    }
    ok(&take(&pool, at).unwrap(), at);
    assert!(take(&pool, at).is_ok());
}

#[test]
fn a_refused_key_is_out_until_one_call_succeeds_with_it() {
    let now = Instant::now();
    let pool = pool(&[("a", "1", 1), ("b", "2", 1)], now);
    let bad = pool.take_named("acme", "a", ANY, now).unwrap();
    bad.refused(401, now);
    for _ in 0..4 {
        assert_eq!(&**take(&pool, now).unwrap().key().name(), "b");
    }
    assert_eq!(pool.status(now)[0].state(), v1::CredentialState::Out);
    let later = now + OUT;
    let trial = pool.take_named("acme", "a", ANY, later).unwrap();
    assert!(pool.take_named("acme", "a", ANY, later).is_err());
    ok(&trial, later);
    assert!(pool.take_named("acme", "a", ANY, later).is_ok());
    assert_eq!(pool.status(later)[0].state(), v1::CredentialState::Ready);
}

#[test]
fn state_outlives_an_update_unless_the_secret_is_another() {
    let now = Instant::now();
    let pool = pool(&[("a", "1", 1)], now);
    take(&pool, now).unwrap().refused(402, now);
    pool.replace(&sent(&[("a", "1", 5)]));
    assert!(take(&pool, now).is_err());
    pool.replace(&sent(&[("a", "new", 5)]));
    assert!(take(&pool, now).is_ok());
    assert_eq!(pool.take("other", ANY, now).err(), Some(NoKey::Unknown));
}

#[test]
fn the_key_to_avoid_is_the_last_choice() {
    let now = Instant::now();
    let both = pool(&[("a", "1", 1), ("b", "2", 1)], now);
    for _ in 0..6 {
        let first = both.take("acme", ANY, now).unwrap();
        let second = both
            .take(
                "acme",
                Wish {
                    avoid: Some(first.key()),
                    ..ANY
                },
                now,
            )
            .unwrap();
        assert_ne!(first.key().name(), second.key().name());
    }
    let one = pool(&[("a", "1", 1)], now);
    let only = one.take("acme", ANY, now).unwrap();
    assert!(
        one.take(
            "acme",
            Wish {
                avoid: Some(only.key()),
                ..ANY
            },
            now
        )
        .is_ok()
    );
}

fn with_limits(limits: v1::Credential, now: Instant) -> Pool {
    let pool = Pool::new(now);
    let credential = v1::Credential {
        name: "a".into(),
        provider: "acme".into(),
        secret: "1".into(),
        ..limits
    };
    pool.replace(&v1::Credentials {
        revision: 1,
        credentials: vec![credential],
        ..v1::Credentials::default()
    });
    pool
}

#[test]
fn calls_that_fail_together_are_one_strike_and_a_late_answer_wakes_nothing() {
    let now = Instant::now();
    let pool = pool(&[("a", "1", 1)], now);
    let permits: Vec<_> = (0..10).map(|_| take(&pool, now).unwrap()).collect();
    let later = now + Duration::from_millis(50);
    let none = HeaderMap::new();
    for permit in &permits[1..] {
        let rest = permit.limited(&none, later, SystemTime::UNIX_EPOCH);
        assert_eq!(rest, REST_FIRST);
    }
    ok(&permits[0], later);
    assert_eq!(take(&pool, later).err(), Some(NoKey::Resting(REST_FIRST)));
    let after = later + REST_FIRST;
    let next = take(&pool, after).unwrap();
    assert_eq!(
        next.limited(&none, after, SystemTime::UNIX_EPOCH),
        2 * REST_FIRST
    );
}

#[test]
fn limits_are_parted_among_the_holders_and_no_more_is_taken() {
    let now = Instant::now();
    for (limit, holders) in [(100, 1), (100, 3), (7, 2), (2, 5)] {
        let mut taken = 0;
        for holder in 0..holders {
            let limits = v1::Credential {
                requests_per_minute: limit,
                holders,
                holder,
                ..v1::Credential::default()
            };
            let pool = with_limits(limits, now);
            while take(&pool, now).is_ok() {
                taken += 1;
            }
        }
        assert_eq!(taken, limit, "{holders} holders");
    }
}

#[test]
fn tokens_are_judged_before_and_put_right_after() {
    let now = Instant::now();
    let limits = v1::Credential {
        tokens_per_minute: 1_000,
        ..v1::Credential::default()
    };
    let pool = with_limits(limits, now);
    let wish = Wish {
        prompt_bytes: Some(2_400),
        ..ANY
    };
    let first = pool.take("acme", wish, now).unwrap();
    assert!(
        pool.take("acme", wish, now).is_err(),
        "600 of 1,000 are taken"
    );
    first.used(100, now);
    drop(first);
    let second = pool.take("acme", wish, now).unwrap();
    drop(second);
    assert!(
        pool.take("acme", wish, now).is_ok(),
        "a call that was not taken used nothing"
    );
    let third = pool.take("acme", wish, now).unwrap();
    ok(&third, now);
    third.unused();
    drop(third);
    assert!(
        pool.take("acme", wish, now).is_ok(),
        "nor did one that the provider would not do"
    );
}

#[test]
fn a_call_without_a_prompt_is_not_judged_by_its_length_nor_others_by_it() {
    let now = Instant::now();
    let limits = v1::Credential {
        tokens_per_minute: 1_000,
        ..v1::Credential::default()
    };
    let pool = with_limits(limits, now);
    let upload = Wish {
        prompt_bytes: None,
        ..ANY
    };
    let prompt = |bytes| Wish {
        prompt_bytes: Some(bytes),
        ..ANY
    };
    let first = pool.take("acme", prompt(3_600), now).unwrap();
    ok(&first, now);
    let uploads: Vec<_> = (0..9)
        .map(|_| pool.take("acme", upload, now).unwrap())
        .collect();
    assert!(pool.take("acme", prompt(800), now).is_err());
    first.used(100, now);
    uploads[0].used(800, now);
    // 900 are used, and nothing is expected beyond a prompt's own.
    assert!(pool.take("acme", prompt(400), now).is_ok());
}

#[test]
fn a_call_that_never_left_is_none_of_a_minutes() {
    let now = Instant::now();
    let limits = v1::Credential {
        requests_per_minute: 1,
        ..v1::Credential::default()
    };
    let pool = with_limits(limits, now);
    take(&pool, now).unwrap().unsent(now);
    let second = take(&pool, now).unwrap();
    ok(&second, now);
    assert!(take(&pool, now).is_err());
}

#[test]
fn concurrency_frees_up_with_the_call() {
    let now = Instant::now();
    let limits = v1::Credential {
        concurrency: 1,
        ..v1::Credential::default()
    };
    let pool = with_limits(limits, now);
    let one = take(&pool, now).unwrap();
    assert!(matches!(take(&pool, now), Err(NoKey::Resting(_))));
    assert_eq!(pool.pools(now)[0].rests_ms, 0, "being busy is not resting");
    drop(one);
    assert!(take(&pool, now).is_ok());
}

#[test]
fn when_all_are_out_one_is_tried_now_and_then() {
    let now = Instant::now();
    let pool = pool(&[("a", "1", 1), ("b", "2", 1)], now);
    for _ in 0..2 {
        take(&pool, now).unwrap().refused(402, now);
    }
    assert!(take(&pool, now).is_err());
    let later = now + Duration::from_secs(6);
    let tried: Vec<_> = (0..10).filter_map(|_| take(&pool, later).ok()).collect();
    assert!((1..=2).contains(&tried.len()), "{}", tried.len());
    ok(&tried[0], later);
    assert!(take(&pool, later).is_ok());
}

#[test]
fn money_decides_before_it_is_gone() {
    let now = Instant::now();
    let pool = pool(&[("a", "1", 1), ("b", "2", 1)], now);
    let usd = |micros| {
        Teller::OpenRouter
            .read(&[serde_json::json!({
                "data": {"limit_remaining": micros}
            })])
            .unwrap()
    };
    let keys = pool.keys_of("acme");
    pool.has(&keys[0], usd(0.4), now);
    let permits: Vec<_> = (0..6).map(|_| take(&pool, now).unwrap()).collect();
    assert!(
        permits.iter().all(|permit| &**permit.key().name() == "b"),
        "the other is low"
    );
    drop(permits);
    take(&pool, now)
        .unwrap()
        .limited(&HeaderMap::new(), now, SystemTime::UNIX_EPOCH);
    assert_eq!(
        &**take(&pool, now).unwrap().key().name(),
        "a",
        "low is better than nothing"
    );
    pool.has(&keys[0], usd(0.0), now);
    assert!(take(&pool, now).is_err(), "nothing left");
    assert_eq!(pool.status(now)[0].state(), v1::CredentialState::Out);
    pool.has(&keys[0], usd(50.0), now);
    assert!(take(&pool, now).is_ok());
}

#[test]
fn a_prompt_stays_with_its_key_unless_that_is_much_busier_or_rests() {
    let now = Instant::now();
    let pool = pool(&[("a", "1", 1), ("b", "2", 1), ("c", "3", 1)], now);
    let mut served = HashMap::<Arc<str>, u32>::default();
    for affinity in 1..=300 {
        let wish = Wish { affinity, ..ANY };
        let first = pool.take("acme", wish, now).unwrap();
        let second = pool.take("acme", wish, now).unwrap();
        assert_eq!(first.key().name(), second.key().name());
        *served.entry(Arc::clone(first.key().name())).or_default() += 1;
    }
    assert!(
        served.values().all(|calls| (60..140).contains(calls)),
        "{served:?}"
    );
    let wish = Wish { affinity: 7, ..ANY };
    let held: Vec<_> = (0..12)
        .map(|_| pool.take("acme", wish, now).unwrap())
        .collect();
    let names: std::collections::HashSet<_> = held.iter().map(|held| held.key().name()).collect();
    assert!(names.len() > 1, "too many for one key");
    drop(held);
    let mine = pool.take("acme", wish, now).unwrap();
    mine.refused(401, now);
    assert_ne!(
        pool.take("acme", wish, now).unwrap().key().name(),
        mine.key().name()
    );
}
