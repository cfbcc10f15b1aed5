//! Dashboards and alert rules watch what is really measured: every metric that they name is named in the source too.
//!
//! Here by words only, so that a renamed metric is found in a second; `tests/it` compares with what processes show.

use crate::tree::Tree;

/// Where dashboards, rules and their tests are.
const WATCHERS: &str = "deploy/grafana/";

/// How the names of our metrics and of their labels begin.
const BEGINNINGS: &[&str] = &["vector_", "gen_ai_", "process_"];

/// What a registry puts in front of names, longest first.
const PREFIXES: &[&str] = &["vector_control_", "vector_"];

/// What Prometheus puts behind them.
const SUFFIXES: &[&str] = &["_total", "_bucket", "_sum", "_count"];

/// Metrics that somebody watches and nobody measures.
pub fn faults(tree: &Tree) -> Vec<String> {
    let sources: Vec<&str> = tree
        .files()
        .filter(|file| file.is_rust() && !file.is_tests())
        .filter(|file| file.path.starts_with("edge/src/") || file.path.starts_with("control/src/"))
        .map(|file| file.text.as_str())
        .collect();
    let mut faults = Vec::new();
    for file in tree.files().filter(|file| file.path.starts_with(WATCHERS)) {
        for name in names(&file.text) {
            if !is_measured(name, &sources) {
                faults.push(format!("{}: nobody measures `{name}`", file.path));
            }
        }
    }
    faults.sort();
    faults.dedup();
    faults
}

/// Words that begin as our metrics do.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| BEGINNINGS.iter().any(|start| word.starts_with(start)))
}

/// Whether the name, or what is left of it without prefix and suffix, stands in quotes or as a field.
fn is_measured(name: &str, sources: &[&str]) -> bool {
    let bare = SUFFIXES.iter().filter_map(|end| name.strip_suffix(end));
    bare.chain([name]).any(|name| {
        let short = PREFIXES.iter().filter_map(|start| name.strip_prefix(start));
        short.chain([name]).any(|name| {
            let (quoted, field) = (format!("\"{name}\""), format!(" {name}: "));
            let stands = |text: &&str| text.contains(&quoted) || text.contains(&field);
            sources.iter().any(stands)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::faults;
    use crate::tree::Tree;

    const SOURCE: (&str, &str) = (
        "edge/src/telemetry.rs",
        "all.register(\"exchanges\", ..);\nstruct Labels {\n    gen_ai_request_model: String,\n}",
    );

    fn check(expression: &str, wanted: &[&str]) {
        let rules = ("deploy/grafana/alerts.yaml", expression);
        assert_eq!(faults(&Tree::of(&[SOURCE, rules])), wanted);
    }

    #[test]
    fn what_is_watched_is_measured() {
        check("rate(vector_exchanges_total{up=\"1\"}[5m])", &[]);
        check("sum by (gen_ai_request_model) (vector_exchanges)", &[]);
        check(
            "vector_exchange_total / vector_exchanges_total",
            &["deploy/grafana/alerts.yaml: nobody measures `vector_exchange_total`"],
        );
    }
}
