//! Objects are told until they are answered for, in order, and never without bound.

use futures_util::FutureExt as _;
use vector_proto::control::v1::RefusedItem;

use super::*;

fn object(number: usize) -> v1::Object {
    v1::Object {
        id: number.to_string(),
        ..v1::Object::default()
    }
}

fn answer(batch: u64) -> ObjectsAnswered {
    ObjectsAnswered {
        batch,
        ..ObjectsAnswered::default()
    }
}

fn now(outbox: &mut Outbox) -> Option<ObjectsMade> {
    outbox.next().now_or_never()
}

#[tokio::test]
async fn what_is_not_answered_is_told_again_however_late_the_next_stream_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (reports, mut outbox) = queues(dir.path());
    reports.object(object(1));
    let first = now(&mut outbox).unwrap();
    assert_eq!((first.batch, first.objects.len()), (1, 1));
    reports.object(object(2));
    assert_eq!(now(&mut outbox).unwrap().batch, 2);
    assert!(now(&mut outbox).is_none());
    outbox.reopened();
    assert_eq!(now(&mut outbox).unwrap(), first);
    assert_eq!(now(&mut outbox).unwrap().batch, 2);
    outbox.answered(&answer(1), Instant::now());
    outbox.answered(&answer(2), Instant::now());
    outbox.reopened();
    assert!(now(&mut outbox).is_none(), "all is answered for");
    assert_eq!(outbox.counts.again.get(), 2);
}

#[tokio::test]
async fn what_control_cannot_keep_now_comes_again_later_and_before_anything_new() {
    let dir = tempfile::tempdir().unwrap();
    let (reports, mut outbox) = queues(dir.path());
    for number in 1..=3 {
        reports.object(object(number));
        assert_eq!(now(&mut outbox).unwrap().batch, number as u64);
    }
    outbox.reopened();
    for number in 1..=3 {
        assert_eq!(now(&mut outbox).unwrap().batch, number);
    }
    let later = |batch| ObjectsAnswered {
        later: true,
        ..answer(batch)
    };
    // In an hour: nothing of it comes while this test runs, unless it is let.
    let at = Instant::now() + Duration::from_secs(3_600);
    outbox.answered(&later(2), at);
    outbox.answered(&later(1), at);
    outbox.answered(&later(3), at);
    reports.object(object(4));
    let mut pause = Duration::ZERO;
    for _ in 0..10 {
        assert!(now(&mut outbox).is_none(), "after a pause");
        pause = outbox.not_before.take().unwrap() - at;
        assert_eq!(now(&mut outbox).unwrap().batch, 1);
        outbox.answered(&later(1), at);
    }
    assert!(pause >= PAUSE_MAX / 2, "it grew to {pause:?}");
    assert!(pause <= PAUSE_MAX.mul_f64(1.5), "and no further: {pause:?}");
    outbox.not_before = None;
    assert_eq!(now(&mut outbox).unwrap().batch, 1);
    // It was heard in the end: the others need not wait.
    outbox.answered(&answer(1), at);
    assert_eq!(now(&mut outbox).unwrap().batch, 2);
    assert_eq!(now(&mut outbox).unwrap().batch, 3);
    assert_eq!(now(&mut outbox).unwrap().objects, [object(4)]);
}

#[tokio::test]
async fn one_that_is_refused_is_counted_and_the_others_are_done() {
    let dir = tempfile::tempdir().unwrap();
    let (reports, mut outbox) = queues(dir.path());
    reports.object(object(1));
    reports.object(object(2));
    let made = now(&mut outbox).unwrap();
    let refused = vec![
        RefusedItem {
            at: 1,
            reason: "absurd".into(),
        },
        RefusedItem {
            at: 77,
            reason: "a lie".into(),
        },
    ];
    let told = ObjectsAnswered {
        refused,
        ..answer(made.batch)
    };
    outbox.answered(&told, Instant::now());
    outbox.reopened();
    assert!(now(&mut outbox).is_none());
    assert_eq!(outbox.counts.refused.get(), 2);
    // One that would cost the others their message is not told at all.
    reports.object(v1::Object {
        id: "x".repeat(OBJECT_BYTES_MAX),
        ..v1::Object::default()
    });
    assert!(now(&mut outbox).is_none());
    assert_eq!(outbox.counts.refused.get(), 3);
}

#[tokio::test]
async fn a_control_that_never_answers_is_told_so_much_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (reports, mut outbox) = queues(dir.path());
    let room = OBJECTS_WAITING_MAX + BATCH_MAX * UNANSWERED_MAX;
    let mut told = 0;
    for number in 0..room + 7 {
        reports.object(object(number));
        if number % BATCH_MAX == BATCH_MAX - 1
            && let Some(made) = now(&mut outbox)
        {
            told += made.objects.len();
        }
    }
    assert_eq!(told, BATCH_MAX * UNANSWERED_MAX);
    assert_eq!(outbox.counts.dropped.get(), 7);
    outbox.answered(&answer(3), Instant::now());
    let made = now(&mut outbox).unwrap();
    assert_eq!(made.objects[0], object(told), "in order, and none missing");
}

#[tokio::test]
async fn what_a_killed_process_has_not_told_the_next_one_tells() {
    let dir = tempfile::tempdir().unwrap();
    let (reports, mut outbox) = queues(dir.path());
    for number in 0..3 {
        reports.object(object(number));
    }
    assert_eq!(now(&mut outbox).unwrap().objects.len(), 3);
    reports.object(object(3));
    drop((reports, outbox));

    // The end of the last one is torn.
    let file = dir.path().join("objects");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let (reports, mut outbox) = queues(dir.path());
    assert!(!reports.is_caught_up());
    reports.object(object(4));
    let left = now(&mut outbox).unwrap();
    assert_eq!(left.objects, (0..3).map(object).collect::<Vec<_>>());
    let new = now(&mut outbox).unwrap();
    assert_eq!(new.objects, [object(4)]);
    outbox.answered(&answer(left.batch), Instant::now());
    assert!(reports.is_caught_up());
    drop((reports, outbox));

    // Not all had an answer: all are told once more, and then none.
    let (reports, mut outbox) = queues(dir.path());
    let again = now(&mut outbox).unwrap();
    assert_eq!(again.objects.len(), 4);
    outbox.answered(&answer(again.batch), Instant::now());
    assert!(reports.is_caught_up());
    drop((reports, outbox));
    let (reports, mut outbox) = queues(dir.path());
    assert!(reports.is_caught_up() && now(&mut outbox).is_none());
}
