//! What is known when control told nothing: it is not there, it is another one, or its store is gone.

use super::{Finding, Level};
use crate::Failure;

/// Why nothing could be asked, and the cure. `connected`: control was there, but gave no answer.
pub(super) fn finding(failure: &Failure, connected: bool) -> Finding {
    let text = failure.text();
    let (check, cure) = match failure {
        // It says so, or it waits for the store longer than anybody waits for it.
        Failure::Unreachable(_) if connected => (
            "store",
            "control runs, its store does not answer. With etcd, a majority of the members must live and see each other: \
             look at `etcdctl endpoint status --cluster` and at the disks below them. Nodes go on with what they know meanwhile",
        ),
        Failure::Unreachable(_) => (
            "control",
            "start vector-control where VECTOR_CONTROL points, or point it elsewhere; let TCP through to its port. \
             Nodes go on with what they know meanwhile",
        ),
        Failure::Token(text) if text.contains("certificate does not match") => (
            "control",
            "use the token of this network's operators: its end is the pin of the network's root. If neither address nor \
             token was changed, somebody is in between",
        ),
        Failure::Token(_) => (
            "operator",
            "set VECTOR_ADMIN_TOKEN to a token of this network, such as the one in control.admin_token_file",
        ),
        Failure::Usage(_) => ("control", "mend what was typed"),
        Failure::Refused(_) => ("control", "see control's log for what it refused, and why"),
    };
    Finding {
        level: Level::Fault,
        check,
        what: text.to_owned(),
        cure: cure.to_owned(),
    }
}
