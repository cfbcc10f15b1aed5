//! Changes of configuration: what is refused before it does harm, what is kept of it, and how it is taken back.

use tonic_types::StatusExt as _;

use super::*;

/// A plan with this many models.
fn models(count: usize) -> pb::Plan {
    let mut plan = plan();
    let like = plan.models[0].clone();
    plan.models = (0..count)
        .map(|n| pb::ModelSpec {
            name: format!("model-{n:02}"),
            ..like.clone()
        })
        .collect();
    plan
}

fn fields(refused: &Status) -> Vec<String> {
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let details = refused.get_details_bad_request().unwrap();
    let faults = details.field_violations.into_iter();
    faults.map(|fault| fault.field).collect()
}

#[tokio::test]
async fn poison_is_refused_and_a_large_loss_must_be_meant() {
    let control = Control::start().await;
    let mut admin = control.admin().await;
    let egress = control.enroll("egress", "e-1").await;
    let mut stream = Stream::open(&mut control.node(&egress).await, 0).await;
    admin.apply(models(20), false).await.unwrap();
    let before = stream
        .snapshot(|snapshot| snapshot.models.len() == 20)
        .await;

    let mut absurd = models(20);
    absurd.models[3].upstreams[0].weight = u32::MAX;
    absurd.credentials[0].tokens_per_minute = u64::MAX;
    let refused = admin.apply(absurd, false).await.unwrap_err();
    let named = [
        "credentials[openai-1].tokens_per_minute",
        "models[model-03].upstreams[0].weight",
    ];
    assert_eq!(fields(&refused), named);

    let refused = admin.apply(models(9), true).await.unwrap_err();
    assert_eq!(fields(&refused), ["models", "upstreams"]);
    assert!(refused.message().contains("11 of 20"), "{refused}");
    let dry = pb::ApplyRequest {
        plan: Some(models(9)),
        prune: true,
        dry_run: true,
        ..pb::ApplyRequest::default()
    };
    let told = admin
        .call(dry, |mut c, r| async move { c.apply(r).await })
        .await
        .unwrap();
    assert_eq!((told.changes.len(), told.losses.len()), (11, 2), "{told:?}");
    admin.apply(models(10), true).await.unwrap();
    let mut off = models(10);
    off.credentials[0].disabled = true;
    let refused = admin.apply(off.clone(), true).await.unwrap_err();
    assert_eq!(fields(&refused), ["models", "upstreams"]);
    admin.force = true;
    admin.apply(off, true).await.unwrap();
    let after = stream
        .snapshot(|snapshot| snapshot.providers[0].egress.is_empty())
        .await;
    assert!(after.revision > before.revision);
    control.stop().await;
}

#[tokio::test]
async fn what_was_changed_is_told_and_taken_back() {
    let control = Control::start().await;
    let admin = control.admin().await;
    let egress = control.enroll("egress", "e-1").await;
    let mut stream = Stream::open(&mut control.node(&egress).await, 0).await;
    let first = admin.apply(models(2), false).await.unwrap();
    stream.snapshot(|snapshot| snapshot.models.len() == 2).await;
    let second = admin.apply(models(1), true).await.unwrap();
    stream.snapshot(|snapshot| snapshot.models.len() == 1).await;

    let listed = admin
        .call(
            pb::ListGenerationsRequest { page_size: 1 },
            |mut c, r| async move { c.list_generations(r).await },
        )
        .await
        .unwrap();
    assert_eq!(listed.generation, second.revision);
    assert_eq!(listed.generations.len(), 1);
    assert_eq!(listed.generations[0].actor, "operator/root");
    assert_eq!(listed.generations[0].changes[0].name, "model-01");
    let asked = pb::DiffGenerationsRequest {
        from: second.revision,
        to: first.revision,
    };
    let differ = admin
        .call(asked, |mut c, r| async move { c.diff_generations(r).await })
        .await
        .unwrap();
    assert_eq!(differ.changes[0].action, "create");

    let undo = async |asked: pb::UndoRequest| {
        admin
            .call(asked, |mut c, r| async move { c.undo(r).await })
            .await
    };
    let stale = pb::UndoRequest {
        base_revision: first.revision,
        ..pb::UndoRequest::default()
    };
    assert_eq!(undo(stale).await.unwrap_err().code(), Code::Aborted);
    let lost = pb::UndoRequest {
        generation: Some(77),
        ..pb::UndoRequest::default()
    };
    let lost = undo(lost).await.unwrap_err();
    assert_eq!(lost.code(), Code::FailedPrecondition, "{lost}");
    let undone = undo(pb::UndoRequest::default()).await.unwrap();
    assert_eq!((undone.changes.len(), undone.left.len()), (1, 0));
    stream.snapshot(|snapshot| snapshot.models.len() == 2).await;
    control.stop().await;
}
