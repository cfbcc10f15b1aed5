//! Calls that name an object which an earlier call made: through any ingress, after any restart, for its account alone.

use harness::{Client, INGRESS, Network, network::NODES};
use serde_json::{Value, json};

/// What `files` without a model goes to. A batch goes where its file is.
fn files_route(provider: &str) -> String {
    format!(
        "[[default_route]]\noperation = \"files.*\"\nupstreams = [{{ provider = \"{provider}\" }}]\n"
    )
}

#[test]
fn an_object_is_found_by_its_makers_credential_through_any_ingress_and_by_nobody_else() {
    let network = Network::shared();
    let pace = ["--first-ms", "0", "--token-ms", "0", "--task-ms", "0"];
    let tenant = network.tenant_of("objects", 2, &pace);
    network.apply(&files_route("objects"));
    network.apply("[[account]]\nname = \"objects-other\"\n");
    let stranger = network.create_key("objects-other", &[]);
    let [here, there] = INGRESS.map(|ingress| tenant.client(ingress));
    // Several, so that both credentials make some.
    for round in 0..4 {
        let content = format!("{{\"round\":{round}}}\n");
        let made = here
            .form("/v1/files", &[("purpose", "batch")], content.as_bytes())
            .expect(200);
        let file = made.id();
        let response = here
            .post(
                "/v1/responses",
                &json!({"model": "objects", "input": "hello"}),
            )
            .expect(200)
            .id();
        for client in [&there, &here] {
            let read = client.get(&format!("/v1/files/{file}/content")).expect(200);
            assert_eq!(read.text(), content);
            assert_eq!(
                client.get(&format!("/v1/files/{file}")).expect(200).json()["id"],
                file.as_str()
            );
            client.get(&format!("/v1/responses/{response}")).expect(200);
        }
        let other = Client::new(network.address(INGRESS[1]), &stranger.text);
        let none = other.get("/v1/files/file-that-never-was").expect(404);
        let theirs = other.get(&format!("/v1/files/{file}")).expect(404);
        assert_eq!(
            theirs.text().replace(&file, "X"),
            none.text().replace("file-that-never-was", "X"),
            "a stranger cannot tell an object of others from none"
        );
        other.get(&format!("/v1/responses/{response}")).expect(404);
        let follow = json!({"model": "objects", "input": "and?", "previous_response_id": response});
        other.post("/v1/responses", &follow).expect(404);
        there.post("/v1/responses", &follow).expect(200);
        a_batchs_output_is_its_makers(&here, &there, &other, &file);
        let deleted = there
            .request("DELETE", &format!("/v1/files/{file}"))
            .send()
            .expect(200);
        assert_eq!(deleted.json()["deleted"], true);
        here.get(&format!("/v1/files/{file}")).expect(404);
    }
    let stats = tenant.sample.stats();
    let used: Vec<&Value> = stats["per_key"].as_array().unwrap().iter().collect();
    assert!(
        used.iter().all(|row| row["requests"].as_u64() > Some(0)),
        "both credentials made objects: {used:?}"
    );
}

/// What a batch has written is found as the batch is, once its maker has seen that it is done.
fn a_batchs_output_is_its_makers(here: &Client, there: &Client, other: &Client, input: &str) {
    let about = json!({"input_file_id": input, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let batch = here.post("/v1/batches", &about).expect(200).id();
    let done = there.get(&format!("/v1/batches/{batch}")).expect(200);
    let done = done.json();
    let output = done["output_file_id"].as_str().unwrap_or_default();
    let content = format!("/v1/files/{output}/content");
    for client in [here, there] {
        let read = client.get(&content).expect(200);
        assert!(read.text().contains("batch_req_sample"));
    }
    other.get(&content).expect(404);
    other.get(&format!("/v1/batches/{batch}")).expect(404);
}

#[test]
fn objects_are_found_after_restarts_of_all_nodes_and_control() {
    let network = Network::own();
    let tenant = network.tenant_of("lasting", 2, &["--first-ms", "0", "--token-ms", "0"]);
    network.apply(&files_route("lasting"));
    let make = |round: usize| {
        let client = tenant.client(INGRESS[round % 2]);
        let content = format!("{{\"round\":{round}}}\n");
        let answer = client
            .form("/v1/files", &[("purpose", "batch")], content.as_bytes())
            .expect(200);
        (answer.id(), content)
    };
    let mut made: Vec<(String, String)> = (0..4).map(make).collect();
    // Of these nobody but the egress nodes knows when they are killed.
    network.kill("control");
    made.extend((4..8).map(make));
    for name in NODES {
        network.kill(name);
    }
    network.up();
    for (file, content) in &made {
        for ingress in INGRESS {
            let read = tenant
                .client(ingress)
                .get(&format!("/v1/files/{file}/content"))
                .expect(200);
            assert_eq!(&read.text(), content);
        }
    }
}
