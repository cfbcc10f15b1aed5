//! What a ledger makes of ids that no call made, but an answer told of.

use vector_proto::control::v1::Object;

use super::{Located, Pair, object};

/// What an answer told of is the account's that heard it first, unless somebody was seen to make it.
pub(super) async fn an_object_told_of_is_nobodys_who_did_not_make_it(pair: &Pair) {
    let told = |account: &str, id: &str, credential: &str| Object {
        told: true,
        ..object(account, id, credential)
    };
    let made = object("a", "batch-in", "one");
    let output = told("a", "batch-out", "one");
    pair[0]
        .keep_objects(vec![
            made.clone(),
            told("a", "batch-in", "two"),
            output.clone(),
        ])
        .await
        .unwrap();
    let again = vec![
        told("b", "batch-in", "three"),
        told("b", "batch-out", "three"),
        told("a", "batch-out", "three"),
    ];
    let refused = pair[1].keep_objects(again).await.unwrap();
    assert!(refused.is_empty(), "there is nothing wrong with it");
    for (account, id, located) in [
        ("a", "batch-in", Located::Own(made)),
        ("b", "batch-in", Located::Foreign),
        (
            "a",
            "batch-out",
            Located::Own(Object {
                told: false,
                ..output
            }),
        ),
        ("b", "batch-out", Located::Foreign),
    ] {
        assert_eq!(pair[0].locate(account, id).await.unwrap(), located, "{id}");
    }
}
