//! `vectorctl doctor`: finds the usual mistakes and says the cure.
//!
//! Every check is pure: it reads what control told ([`Sight`]) and adds what it found. `reach` judges the case in
//! which control told nothing. A fault is what stops traffic or soon will; a warning is what somebody should know.

use serde_json::{Value, json};

use crate::{
    Failure,
    connect::{Proof, connect},
    sight,
    sight::Sight,
};

mod nodes;
mod reach;
mod supply;

#[cfg(test)]
mod tests;

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Level {
    Fault,
    Warning,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// Which check found it.
    pub(crate) check: &'static str,
    pub(crate) what: String,
    pub(crate) cure: String,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn fault(&mut self, check: &'static str, what: String, cure: impl Into<String>) {
        self.push(Level::Fault, check, what, cure.into());
    }

    fn warning(&mut self, check: &'static str, what: String, cure: impl Into<String>) {
        self.push(Level::Warning, check, what, cure.into());
    }

    fn push(&mut self, level: Level, check: &'static str, what: String, cure: String) {
        self.0.push(Finding {
            level,
            check,
            what,
            cure,
        });
    }
}

/// Every check, in order.
const CHECKS: &[fn(&Sight, &mut Findings)] = &[
    nodes::there,
    nodes::paths,
    nodes::away,
    nodes::rejections,
    nodes::clocks,
    nodes::certificates,
    nodes::versions,
    nodes::disks,
    supply::providers,
    supply::credentials,
    supply::models,
    supply::keys,
    supply::change,
];

/// All that is not as it should be, the worst first.
pub(crate) fn examine(sight: &Sight) -> Vec<Finding> {
    let mut findings = Findings::default();
    for check in CHECKS {
        check(sight, &mut findings);
    }
    findings.0.sort_by_key(|finding| finding.level);
    findings.0
}

/// Looks at the network and answers the report, and whether a fault is in it.
pub(crate) async fn run(url: &str, proof: &Proof) -> (Value, String, bool) {
    let findings = match connect(url, proof).await {
        Err(failure) => vec![reach::finding(&failure, false)],
        Ok(client) => match sight::gather(&client).await {
            Ok(sight) => examine(&sight),
            Err(failure) => vec![reach::finding(&failure, true)],
        },
    };
    let bad = findings.iter().any(|found| found.level == Level::Fault);
    (value(&findings), text(&findings), bad)
}

pub(crate) fn value(findings: &[Finding]) -> Value {
    let rows = findings.iter().map(|found| {
        json!({
            "level": found.level.as_str(), "check": found.check, "what": found.what, "cure": found.cure,
        })
    });
    json!({ "findings": rows.collect::<Vec<_>>() })
}

fn text(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return format!("all {} checks are fine", CHECKS.len());
    }
    let lines = findings.iter().map(|found| {
        format!(
            "{}: {}\n  cure: {}",
            found.level.as_str(),
            found.what,
            found.cure
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The failure to reach control, as the one thing that is known.
impl Failure {
    pub(crate) fn text(&self) -> &str {
        self.parts().1
    }
}
