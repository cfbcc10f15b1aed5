//! The plan: applied, applied again, compared, refused.

use harness::Network;

const PLAN: &str = "[[provider]]\nname = \"planned\"\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nallow_private = true\n\
    [[model]]\nname = \"planned\"\nupstreams = [{ provider = \"planned\" }]\n";

#[test]
fn a_plan_is_shown_applied_and_then_changes_nothing() {
    let network = Network::shared();
    let run = |arguments: &[&str], plan: &str| {
        network.ctl_text(&[arguments, &["-f", "-"]].concat(), plan)
    };
    let shown = run(&["diff"], PLAN).unwrap();
    assert!(
        shown.contains("planned") && shown.contains("create"),
        "{shown}"
    );
    assert_eq!(
        run(&["diff", "--exit-code"], PLAN).unwrap_err().code,
        Some(1)
    );
    // Others apply plans of their own at the same time.
    let apply = ["apply", "--base", "0"];
    assert!(run(&apply, PLAN).unwrap().contains("planned"));
    let again = run(&apply, PLAN).unwrap();
    assert!(again.to_lowercase().contains("no changes"), "{again}");
    run(&["diff", "--exit-code"], PLAN).unwrap();
    let moved = PLAN.replace("127.0.0.1:9", "127.0.0.1:10");
    let shown = run(&["diff"], &moved).unwrap();
    assert!(
        shown.contains("0 to create, 1 to update, 0 to remove"),
        "{shown}"
    );
}

#[test]
fn a_plan_with_unknown_keys_is_refused_with_all_their_names() {
    let plan = "[[provider]]\nname = \"p\"\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\nallow_private = true\nspeed = 3\n\
        [[model]]\nname = \"m\"\nupstreams = [{ provider = \"p\", colour = \"red\" }]\n[[wheel]]\nname = \"w\"\n";
    let refused = Network::shared()
        .ctl_text(&["apply", "-f", "-"], plan)
        .unwrap_err();
    assert_eq!(refused.code, Some(2));
    for name in ["speed", "colour", "wheel"] {
        assert!(refused.text.contains(name), "{name}: {}", refused.text);
    }
}

#[test]
fn a_plan_that_would_break_the_network_is_refused_and_the_last_one_stays() {
    let network = Network::shared();
    let plan = "[[model]]\nname = \"nowhere\"\nupstreams = [{ provider = \"there-is-no-such-provider\" }]\n";
    let refused = network.ctl_text(&["apply", "-f", "-"], plan).unwrap_err();
    assert!(
        refused.text.contains("there-is-no-such-provider"),
        "{}",
        refused.text
    );
    let models = network.ctl(&["model", "list"]).unwrap().to_string();
    assert!(!models.contains("nowhere"), "{models}");
}

#[test]
fn what_an_operator_looks_at_is_there() {
    let network = Network::shared();
    let tenant = network.tenant("looked-at");
    let status = network.ctl(&["status"]).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    for name in harness::network::NODES {
        let node = nodes.iter().find(|node| node["id"] == name).unwrap();
        assert_eq!(node["connected"], true, "{node}");
    }
    let explained = network.ctl(&["explain", &tenant.name]).unwrap();
    let candidates = explained["candidates"].as_array().unwrap();
    assert!(candidates.len() >= 2, "{explained}");
    assert!(
        candidates.iter().any(|row| row["usable"] == true),
        "{explained}"
    );
    let table = network.ctl_text(&["status"], "").unwrap();
    assert!(table.contains("egress-us-1"), "{table}");
    let script = network.ctl_text(&["completion", "bash"], "").unwrap();
    assert!(script.contains("vectorctl"));
    let shown = network.ctl_text(&["credential", "list"], "").unwrap();
    assert!(
        !shown.contains(&tenant.secrets[0]),
        "a secret is never shown"
    );
}

#[test]
fn usage_is_recorded() {
    let network = Network::shared();
    let tenant = network.tenant("used");
    let answer = tenant
        .client(harness::INGRESS[0])
        .post("/v1/chat/completions", &tenant.chat(&serde_json::json!({})))
        .expect(200);
    let tokens = answer.json()["usage"]["total_tokens"].clone();
    let id = answer.header("x-request-id").unwrap();
    let usage = harness::wait::wait_some("the exchange is in the ledger", || {
        let usage = network.ctl(&["usage", "--account", "used"]).unwrap();
        (usage["exchanges"] == 1).then_some(usage)
    });
    let text = usage.to_string();
    assert!(text.contains(id), "{text}");
    assert!(text.contains(&tokens.to_string()) || usage["total"].is_object());
}
