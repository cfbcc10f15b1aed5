//! Everything that is relied on of the ledger, said once and run against both kinds of books.
//!
//! Each part is given two handles: of one file they are the same, of a database they are two replicas.

use std::sync::Arc;

use futures_util::future::join_all;
use vector_proto::{
    control::v1::{Object, UsageRecord},
    tunnel::v1::Usage,
};

use super::{
    Books, Claim, Claimed, Error, Ledger, Located, UsageQuery,
    claims::{Bounds, CLAIM_MS},
    embedded::Embedded,
    postgres::{Postgres, cluster::Cluster},
};

mod told;

/// Few enough to be reached by a test; a multiple of the parts that PostgreSQL counts in.
pub(super) const BOUNDS: Bounds = Bounds {
    account: 64,
    all: 64 * 100,
};

type Pair = [Arc<Ledger>; 2];

async fn keeps_the_contract(pair: &Pair) {
    a_record_counts_once_whoever_says_it(pair).await;
    usage_is_found_summed_and_paged(pair).await;
    absurd_records_are_refused_and_odd_ones_are_not(pair).await;
    objects_are_their_accounts_alone(pair).await;
    told::an_object_told_of_is_nobodys_who_did_not_make_it(pair).await;
    an_object_is_found_while_it_is_being_made(pair).await;
    one_of_many_gets_a_key(pair).await;
    a_key_is_its_accounts_and_its_requests_alone_and_lasts_a_day(pair).await;
    a_freed_key_is_free_and_nobody_frees_anothers(pair).await;
    claims_are_bounded_and_old_ones_make_room(pair).await;
}

#[tokio::test]
async fn one_file_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let books = Embedded::open(&dir.path().join("ledger.sqlite"), BOUNDS).unwrap();
    let ledger = Arc::new(Ledger::with(Books::Embedded(books)));
    keeps_the_contract(&[Arc::clone(&ledger), ledger]).await;
}

async fn shared(cluster: &Cluster, schema: &str) -> Arc<Ledger> {
    let settings = cluster.settings(schema, "");
    let books = Postgres::open(&settings, BOUNDS).await.unwrap();
    Arc::new(Ledger::with(Books::Postgres(Box::new(books))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_of_a_database_keep_the_contract() {
    let cluster = Cluster::start();
    // Both find nothing and make the tables: one of them comes first.
    let (a, b) = tokio::join!(shared(&cluster, "one"), shared(&cluster, "one"));
    keeps_the_contract(&[a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_may_go_and_come_back() {
    let mut cluster = Cluster::start();
    let ledger = shared(&cluster, "one").await;
    ledger.record(vec![record(1, "a", 10)]).await.unwrap();
    cluster.halt();
    let refused = ledger.record(vec![record(2, "a", 20)]).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    // Control starts without it, and has its tables once it is there.
    let late = shared(&cluster, "two").await;
    let refused = late.claim(claim("a", 1, 1, 1, 1)).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    cluster.go();
    for ledger in [&ledger, &late] {
        let both = vec![record(1, "a", 10), record(2, "a", 20)];
        ledger.record(both).await.unwrap();
        assert_eq!(ledger.usage(all("a")).await.unwrap().exchanges, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_through_a_restart_of_the_database() {
    let mut cluster = Cluster::start();
    let ledger = shared(&cluster, "one").await;
    ledger.record(vec![record(1, "a", 1)]).await.unwrap();
    cluster.halt();
    // Asked while it is down, answered once it is up: the call's own attempts bridge that.
    let asked = Arc::clone(&ledger);
    let call = async move {
        loop {
            let answer = asked.record(vec![record(2, "a", 2)]).await;
            if !matches!(answer, Err(Error::Unavailable(_))) {
                return answer;
            }
        }
    };
    let back = tokio::task::spawn_blocking(move || {
        cluster.go();
        cluster
    });
    let (answer, cluster) = tokio::join!(call, back);
    answer.unwrap();
    assert_eq!(ledger.usage(all("a")).await.unwrap().exchanges, 2);
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_goes_is_said_at_the_start() {
    let cluster = Cluster::start();
    let opened = async |change: fn(&mut crate::config::Postgres)| {
        let mut settings = cluster.settings("one", "");
        change(&mut settings);
        let opened = Postgres::open(&settings, BOUNDS).await;
        match opened.err() {
            Some(Error::Settings(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    let why = opened(|settings| settings.url = settings.url.replace("vector@", "nobody@")).await;
    assert!(why.contains("28P01"), "{why}");
    let why = opened(|settings| settings.url = settings.url.replace("/postgres", "/none")).await;
    assert!(why.contains("none"), "{why}");
    let why = opened(|settings| settings.password_file = Some("/nowhere".into())).await;
    assert!(why.contains("postgres_password_file"), "{why}");
    let _tables = shared(&cluster, "one").await;
    let (client, connection) = {
        let target = cluster.settings("one", "").url;
        let mut target: tokio_postgres::Config = target.parse().unwrap();
        let target = target.password("hush");
        target.connect(tokio_postgres::NoTls).await.unwrap()
    };
    let newer = async move {
        let newer = "INSERT INTO one.schema_version VALUES (1000, 0)";
        client.execute(newer, &[]).await.unwrap()
    };
    let _ended = tokio::join!(newer, connection);
    let why = opened(|_| ()).await;
    assert!(why.contains("newer control"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified_and_the_login_bound_to_it() {
    let mut cluster = Cluster::start();
    cluster.halt();
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    cluster.give("server.crt", &made.pem());
    cluster.give("server.key", &key.serialize_pem());
    cluster.configure("ssl = on\n");
    cluster.give(
        "pg_hba.conf",
        "hostssl all all 127.0.0.1/32 scram-sha-256\nlocal all all scram-sha-256\n",
    );
    cluster.go();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, made.pem()).unwrap();
    let mut settings = cluster.settings("one", "?sslmode=verify-full&channel_binding=require");
    assert!(settings.tls);
    settings.ca_file = Some(ca.clone());
    let books = Postgres::open(&settings, BOUNDS).await.unwrap();
    let ledger = Ledger::with(Books::Postgres(Box::new(books)));
    ledger.record(vec![record(1, "a", 1)]).await.unwrap();

    // Another CA: nobody is told the password.
    let other = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .self_signed(&other)
        .unwrap();
    std::fs::write(&ca, other.pem()).unwrap();
    let books = Postgres::open(&settings, BOUNDS).await.unwrap();
    let ledger = Ledger::with(Books::Postgres(Box::new(books)));
    let refused = ledger.record(vec![record(2, "a", 1)]).await;
    assert!(
        matches!(&refused, Err(Error::Unavailable(why)) if why.contains("certificate")),
        "{refused:?}"
    );
}

pub(super) fn record(exchange: u8, account: &str, ended_unix_ms: u64) -> UsageRecord {
    UsageRecord {
        exchange: vec![exchange; 16].into(),
        account: account.into(),
        key: format!("{account}-key"),
        ended_unix_ms,
        usage: Some(Usage {
            input_tokens: 1_000,
            output_tokens: u64::from(exchange),
            ..Usage::default()
        }),
        ..UsageRecord::default()
    }
}

pub(super) fn all(account: &str) -> UsageQuery {
    UsageQuery {
        account: account.into(),
        rows: 1_000,
        ..UsageQuery::default()
    }
}

async fn a_record_counts_once_whoever_says_it(pair: &Pair) {
    // Both replicas hear of the same rows at once, in different orders, and twice in one batch.
    let calls = (0..8_u8).map(|call| {
        let mut records: Vec<_> = (1..=200)
            .map(|exchange| record(exchange, "once", 5))
            .collect();
        if call % 2 == 0 {
            records.reverse();
        }
        records.push(record(7, "once", 5));
        pair[usize::from(call % 2)].record(records)
    });
    for done in join_all(calls).await {
        done.unwrap();
    }
    for ledger in pair {
        let page = ledger.usage(all("once")).await.unwrap();
        assert_eq!((page.exchanges, page.records.len()), (200, 200));
        assert_eq!(page.total.input_tokens, 200_000);
        assert_eq!(page.total.output_tokens, (1..=200).sum::<u64>());
    }
    // The first word counts.
    let changed = UsageRecord {
        ended_unix_ms: 9,
        ..record(1, "once", 5)
    };
    pair[1].record(vec![changed]).await.unwrap();
    let page = pair[0].usage(all("once")).await.unwrap();
    assert!(page.records.iter().all(|record| record.ended_unix_ms == 5));
}

async fn usage_is_found_summed_and_paged(pair: &Pair) {
    let records = (201..=250).map(|exchange| record(exchange, "pages", u64::from(exchange) / 3));
    pair[0].record(records.collect()).await.unwrap();
    let mut query = UsageQuery {
        rows: 20,
        ..all("pages")
    };
    let mut seen = Vec::new();
    loop {
        let page = pair[1].usage(query.clone()).await.unwrap();
        assert_eq!(page.exchanges, 50);
        let last = page.records.last().unwrap();
        query.behind = Some((last.ended_unix_ms, last.exchange.to_vec()));
        seen.extend(page.records.iter().map(|record| record.exchange[0]));
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, (201..=250).rev().collect::<Vec<u8>>());
    let part = UsageQuery {
        key: "pages-key".into(),
        from_unix_ms: 70,
        until_unix_ms: 80,
        rows: 0,
        ..UsageQuery::default()
    };
    let page = pair[0].usage(part.clone()).await.unwrap();
    assert_eq!(
        (page.exchanges, page.records.len(), page.more),
        (30, 0, true)
    );
    let other = UsageQuery {
        key: "other".into(),
        ..part
    };
    let page = pair[0].usage(other).await.unwrap();
    assert_eq!((page.exchanges, page.total.reported), (0, false));
}

async fn absurd_records_are_refused_and_odd_ones_are_not(pair: &Pair) {
    let short = UsageRecord {
        exchange: vec![1; 15].into(),
        ..record(1, "odd", 1)
    };
    let batch = vec![record(251, "odd", 1), short];
    let refused = pair[0].record(batch).await.unwrap();
    assert_eq!((refused.len(), refused[0].at), (1, 1));
    assert_eq!(pair[0].usage(all("odd")).await.unwrap().exchanges, 1);
    // A client may name a model as it likes, and a counter may be absurd: the other rows do not wait for ever.
    let odd = UsageRecord {
        account: "odd\0".into(),
        model: "\0'; DROP TABLE usage; --".into(),
        usage: Some(Usage {
            input_tokens: u64::MAX,
            ..Usage::default()
        }),
        ..record(252, "odd", 1)
    };
    let batch = vec![odd.clone(), record(253, "odd", u64::MAX)];
    pair[0].record(batch).await.unwrap();
    assert_eq!(pair[1].usage(all("odd\0")).await.unwrap().records, [odd]);
    pair[1].record(Vec::new()).await.unwrap();
}

fn object(account: &str, id: &str, credential: &str) -> Object {
    Object {
        id: id.into(),
        account: account.into(),
        provider: "openai".into(),
        credential: credential.into(),
        operation: "files.create".into(),
        model: "m".into(),
        made_unix_ms: 7,
        told: false,
    }
}

async fn objects_are_their_accounts_alone(pair: &Pair) {
    let first = object("a", "file-1", "one");
    let again = object("a", "file-1", "two");
    // The last word wins, also within a batch.
    pair[0]
        .keep_objects(vec![first, again.clone()])
        .await
        .unwrap();
    let found = pair[1].locate("a", "file-1").await.unwrap();
    assert_eq!(found, Located::Own(again));
    assert_eq!(
        pair[1].locate("b", "file-1").await.unwrap(),
        Located::Foreign
    );
    assert_eq!(
        pair[0].locate("b", "file-2").await.unwrap(),
        Located::Unknown
    );
    let mixed = vec![
        object("a", "", "x"),
        object("a", "nul\0", "x"),
        object("a", &"long".repeat(200), "x"),
    ];
    let refused = pair[0].keep_objects(mixed).await.unwrap();
    let at: Vec<usize> = refused.iter().map(|refused| refused.at).collect();
    assert_eq!(at, [0, 2], "the good one between them is kept");
    assert!(matches!(
        pair[1].locate("a", "nul\0").await.unwrap(),
        Located::Own(_)
    ));
    pair[0].keep_objects(Vec::new()).await.unwrap();
}

async fn an_object_is_found_while_it_is_being_made(pair: &Pair) {
    // The look-up is there first, at the other replica.
    let mut search = std::pin::pin!(pair[1].locate("a", "soon"));
    assert!(futures_util::poll!(&mut search).is_pending());
    let made = object("a", "soon", "one");
    let (kept, found) = tokio::join!(pair[0].keep_objects(vec![made.clone()]), search);
    kept.unwrap();
    assert_eq!(found.unwrap(), Located::Own(made));
}

fn claim(account: &str, key: u8, print: u8, exchange: u8, now_unix_ms: u64) -> Claim {
    Claim {
        account: account.into(),
        key: [key; 32],
        print: [print; 32],
        exchange: [exchange; 16],
        now_unix_ms,
    }
}

fn taken(exchange: u8, egress: &str, age_ms: u64) -> Claimed {
    Claimed::Taken {
        exchange: [exchange; 16],
        egress: egress.into(),
        age_ms,
    }
}

async fn one_of_many_gets_a_key(pair: &Pair) {
    // Before a replica has seen the account, and after.
    for key in 1..=3 {
        let claims = (1..=50).map(|exchange| {
            pair[usize::from(exchange % 2)].claim(claim("many", key, 1, exchange, 1_000))
        });
        let outcomes: Vec<Claimed> = join_all(claims)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let fresh: Vec<usize> = (0..50)
            .filter(|at| outcomes[*at] == Claimed::Fresh)
            .collect();
        assert_eq!(fresh.len(), 1);
        let winner = u8::try_from(fresh[0] + 1).unwrap();
        assert!(
            outcomes
                .iter()
                .all(|outcome| *outcome == Claimed::Fresh || *outcome == taken(winner, "", 0))
        );
        // Whoever lost the answer asks again, elsewhere.
        for ledger in pair {
            let again = ledger.claim(claim("many", key, 1, winner, 1_000)).await;
            assert_eq!(again.unwrap(), Claimed::Fresh);
        }
    }
}

async fn a_key_is_its_accounts_and_its_requests_alone_and_lasts_a_day(pair: &Pair) {
    let ask = async |claim| pair[0].claim(claim).await.unwrap();
    assert_eq!(ask(claim("a", 1, 1, 1, 1_000)).await, Claimed::Fresh);
    assert_eq!(ask(claim("a", 1, 2, 2, 1_500)).await, Claimed::Conflict);
    assert_eq!(ask(claim("b", 1, 2, 3, 1_500)).await, Claimed::Fresh);
    for (account, egress) in [("b", "elsewhere"), ("a", "egress")] {
        pair[1]
            .settle(account.into(), [1; 32], [1; 16], egress.into())
            .await
            .unwrap();
    }
    assert_eq!(
        ask(claim("a", 1, 1, 4, 2_000)).await,
        taken(1, "egress", 1_000)
    );
    let recall = async |account: &str, exchange| {
        pair[1]
            .recall(account.into(), [exchange; 16])
            .await
            .unwrap()
    };
    assert_eq!(recall("a", 1).await, Some("egress".into()));
    assert_eq!(recall("b", 1).await, None);
    assert_eq!(recall("b", 3).await, Some(String::new()));
    let next_day = 1_000 + CLAIM_MS;
    // Of many that find it too old, one gets it.
    let late = (5..=20).map(|exchange| {
        pair[usize::from(exchange % 2)].claim(claim("a", 1, exchange, exchange, next_day))
    });
    let late: Vec<Claimed> = join_all(late)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let count = |wanted: &Claimed| late.iter().filter(|claimed| *claimed == wanted).count();
    assert_eq!((count(&Claimed::Fresh), count(&Claimed::Conflict)), (1, 15));
    let nobody = pair[0].claim(claim("", 1, 1, 1, 1)).await;
    assert!(matches!(nobody, Err(Error::Invalid(_))));
}

async fn a_freed_key_is_free_and_nobody_frees_anothers(pair: &Pair) {
    let ask = async |claim| pair[0].claim(claim).await.unwrap();
    let free = async |exchange| {
        pair[1]
            .settle("freed".into(), [1; 32], [exchange; 16], String::new())
            .await
            .unwrap();
    };
    assert_eq!(ask(claim("freed", 1, 1, 1, 1_000)).await, Claimed::Fresh);
    free(2).await;
    assert_eq!(ask(claim("freed", 1, 1, 2, 1_000)).await, taken(1, "", 0));
    free(1).await;
    assert_eq!(ask(claim("freed", 1, 9, 3, 1_000)).await, Claimed::Fresh);
}

async fn claims_are_bounded_and_old_ones_make_room(pair: &Pair) {
    let bound = u8::try_from(BOUNDS.account).unwrap();
    let ask = async |claim| pair[1].claim(claim).await.unwrap();
    let fill =
        (0..bound).map(|key| pair[usize::from(key % 2)].claim(claim("full", key, 1, key, 5)));
    for claimed in join_all(fill).await {
        assert_eq!(claimed.unwrap(), Claimed::Fresh);
    }
    for key in bound..bound + 16 {
        assert_eq!(ask(claim("full", key, 1, key, 6)).await, Claimed::Full);
    }
    assert_eq!(ask(claim("full", 0, 1, 99, 6)).await, taken(0, "", 1));
    assert_eq!(ask(claim("other", 99, 1, 1, 6)).await, Claimed::Fresh);
    // One that is freed makes room for one.
    let freed = pair[0].settle("full".into(), [3; 32], [3; 16], String::new());
    freed.await.unwrap();
    assert_eq!(
        ask(claim("full", 3 + 2 * bound, 1, 1, 6)).await,
        Claimed::Fresh
    );
    assert_eq!(ask(claim("full", 3 + bound, 1, 1, 6)).await, Claimed::Full);
    // A day later the account has all its keys again.
    for key in 0..bound {
        let claimed = ask(claim("full", 255 - key, 1, key, CLAIM_MS + 6)).await;
        assert_eq!(claimed, Claimed::Fresh, "{key}");
    }
    let claimed = pair[0].claim(claim("full", 0, 1, 1, CLAIM_MS + 6)).await;
    assert_eq!(claimed.unwrap(), Claimed::Full);
}
