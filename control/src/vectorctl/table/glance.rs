//! The network at a glance: nodes, paths, models, rates, and what is wrong.

use super::{rollout, status};
use crate::{
    doctor::{Finding, Level},
    sight::{RATE_S, Sight},
};

/// Findings shown; `vectorctl doctor` tells all of them, with the cure.
const SHOWN_MAX: usize = 10;

pub(crate) fn glance(sight: &Sight, findings: &[Finding]) -> String {
    let [up, suspect, down] = sight.paths();
    let usage = sight.lately.total.unwrap_or_default();
    let running: u64 = sight
        .nodes()
        .iter()
        .filter_map(|view| view.status.as_ref())
        .map(|status| status.client_exchanges)
        .sum();
    let models = findings
        .iter()
        .filter(|found| found.check == "model")
        .count();
    let mut text = status(&sight.status);
    text += &format!(
        "\n\npaths   {up} up, {suspect} suspect, {down} down\n\
         models  {} models and {} default routes, {models} of them in trouble\n\
         rates   {running} requests running; in the last {RATE_S} s {} ended, {} tokens in, {} out\n",
        sight.models.len(),
        sight.routes.len(),
        sight.lately.exchanges,
        usage.input_tokens,
        usage.output_tokens,
    );
    if let Some(told) = &sight.status.rollout
        && !matches!(told.stage.as_str(), "" | "none" | "done")
    {
        text += &format!("rollout {}\n", rollout(told));
    }
    if findings.is_empty() {
        text += "alerts  none";
        return text;
    }
    let faults = findings
        .iter()
        .filter(|found| found.level == Level::Fault)
        .count();
    text += &format!(
        "alerts  {faults} faults, {} warnings; vectorctl doctor says the cure",
        findings.len() - faults
    );
    for found in findings.iter().take(SHOWN_MAX) {
        text += &format!("\n  {}", found.what);
    }
    if findings.len() > SHOWN_MAX {
        text += &format!("\n  and {} more", findings.len() - SHOWN_MAX);
    }
    text
}
