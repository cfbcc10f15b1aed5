//! What a stranger may send to a real ingress: each gets a clear error or a closed connection, and a good request works
//! right after, on the same node.

use harness::{Answer, CANARY, Client, Connection, INGRESS, Network, http, http::Request};
use serde_json::json;

/// A good request, which must go through after every bad one.
fn good(client: &Client) {
    client.get("/v1/models").expect(200);
}

/// Sends bytes as they are, and reads until the peer closes.
fn raw(client: &Client, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut connection = Connection::open(client.address);
    connection.write(bytes.as_ref());
    let answer = connection.rest();
    good(client);
    answer
}

fn client() -> Client {
    Network::shared().client(INGRESS[0])
}

fn refused(client: &Client, request: Request, status: u16, code: &str) -> Answer {
    let answer = request.send().refused(status, code);
    good(client);
    answer
}

#[test]
fn bodies_that_are_not_json_are_refused() {
    let client = client();
    let chat = |body: &str| {
        client
            .request("POST", "/v1/chat/completions")
            .header("content-type", "application/json")
            .body(body)
    };
    for body in [
        "{\"model\":\"gpt-4o-mini\",,}",
        "{\"model\":\"gpt-4o-mini\",\"messages\":[",
        "{\"model\":",
        "",
        "[]",
        "\u{0}\u{1}",
        "{\"model\":7}",
        "{\"model\":\"a\",\"model\":\"b\"}",
    ] {
        let answer = chat(body).send();
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        answer.error_code();
        good(&client);
    }
    let deep = format!("{{\"model\":\"gpt-4o-mini\",\"x\":{}", "[".repeat(200_000));
    let answer = chat(&deep).send();
    assert_eq!(answer.status, 400, "{}", answer.text());
    good(&client);
}

#[test]
fn a_body_that_ends_too_soon_is_no_request() {
    let client = client();
    let mut connection = Connection::open(client.address);
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{\"model\":\"gpt-4o-mini\"",
        client.key
    );
    connection.write(head.as_bytes());
    connection.finish();
    let answer = connection.rest();
    if let Some(answer) = http::parse(&answer) {
        assert!((400..500).contains(&answer.status), "{}", answer.text());
    }
    good(&client);
}

#[test]
fn models_that_are_missing_or_unknown_are_named() {
    let client = client();
    let chat = |body| client.json("/v1/chat/completions", &body);
    // The network has a route for calls without a model, so it is the provider who misses it.
    let answer = chat(json!({"messages": []})).send().expect(400);
    assert!(answer.text().contains("model"), "{}", answer.text());
    answer.error_code();
    good(&client);
    let unknown = json!({"model": "there-is-no-such-model", "messages": []});
    let answer = refused(&client, chat(unknown), 404, "model_not_found");
    assert!(
        answer.text().contains("there-is-no-such-model"),
        "{}",
        answer.text()
    );
    assert_eq!(answer.json()["error"]["param"], "model");
}

#[test]
fn wrong_content_types_are_refused() {
    let client = client();
    let typed = |target: &str, kind: &str| {
        client
            .request("POST", target)
            .header("content-type", kind)
            .body("model=gpt-4o-mini")
    };
    for (target, kind) in [
        ("/v1/chat/completions", "text/plain"),
        ("/v1/chat/completions", "application/x-www-form-urlencoded"),
        ("/v1/audio/transcriptions", "application/json"),
    ] {
        refused(
            &client,
            typed(target, kind),
            415,
            "unsupported_content_type",
        );
    }
}

#[test]
fn heads_that_are_too_large_are_refused() {
    let client = client();
    for head in [
        format!("X-A: {}\r\n", "b".repeat(40 << 10)),
        "X-A: b\r\n".repeat(120),
    ] {
        let bytes = raw(
            &client,
            format!("GET /v1/models HTTP/1.1\r\nHost: x\r\n{head}\r\n"),
        );
        http::parse(&bytes)
            .unwrap()
            .refused(431, "headers_too_large");
    }
    let long = format!(
        "GET /v1/models?{} HTTP/1.1\r\nHost: x\r\n\r\n",
        "q".repeat(70 << 10)
    );
    let answer = http::parse(&raw(&client, long)).unwrap();
    assert!(
        [414, 431].contains(&answer.status),
        "{} {}",
        answer.status,
        answer.text()
    );
}

#[test]
fn a_body_above_the_limit_is_refused_by_its_length_alone_and_by_its_bytes() {
    let network = Network::shared();
    let node = network.extra_ingress("ingress-small", "body_bytes_max = 65536");
    let client = node.client(network.env("OPENAI_API_KEY"));
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n",
        client.key
    );
    let bytes = raw(&client, format!("{head}Content-Length: 65537\r\n\r\n"));
    http::parse(&bytes)
        .unwrap()
        .refused(413, "request_too_large");
    let body = format!(
        "{{\"model\":\"gpt-4o-mini\",\"x\":\"{}\"}}",
        "y".repeat(70_000)
    );
    let chunked = format!(
        "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    http::parse(&raw(&client, chunked))
        .unwrap()
        .refused(413, "request_too_large");
}

#[test]
fn forms_that_are_cut_or_name_no_model_are_refused() {
    let client = client();
    let form = |body: &str| {
        client
            .request("POST", "/v1/audio/transcriptions")
            .header("content-type", "multipart/form-data; boundary=b")
            .body(body)
    };
    let model = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1";
    let answer = form(model).send();
    assert_eq!(answer.status, 400, "{}", answer.text());
    answer.error_code();
    good(&client);
    let file =
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nabc";
    let cut = format!("{model}\r\n{file}");
    let answer = form(&cut).send();
    assert_eq!(answer.status, 400, "cut within the file: {}", answer.text());
    good(&client);
    let nameless = format!("{file}\r\n--b--\r\n");
    let answer = form(&nameless).send().expect(400);
    assert!(answer.text().contains("model"), "{}", answer.text());
    answer.error_code();
    good(&client);
    let answer = client
        .request("POST", "/v1/audio/transcriptions")
        .header("content-type", "multipart/form-data")
        .body(nameless)
        .send();
    assert_eq!(answer.status, 400, "without a boundary: {}", answer.text());
    good(&client);
}

#[test]
fn bad_websocket_upgrades_are_refused() {
    let client = client();
    let target = "/v1/realtime?model=gpt-realtime";
    let plain = client.request("GET", target);
    refused(&client, plain, 400, "bad_websocket_upgrade");
    let upgrade = || {
        client
            .request("GET", target)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
    };
    refused(&client, upgrade(), 400, "bad_websocket_upgrade");
    let old = upgrade()
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "8");
    refused(&client, old, 400, "bad_websocket_upgrade");
    let short = upgrade()
        .header("sec-websocket-key", "c2hvcnQ=")
        .header("sec-websocket-version", "13");
    refused(&client, short, 400, "bad_websocket_upgrade");
}

#[test]
fn smuggling_forms_get_one_refusal_and_no_second_request_is_served() {
    let client = client();
    let smuggled = format!(
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n",
        client.key
    );
    let auth = format!("Authorization: Bearer {}\r\n", client.key);
    let post = "POST /v1/chat/completions HTTP/1.1\r\n";
    for head in [
        "Host: x\r\nContent-Length: 4\r\nContent-Length: 4\r\n",
        "Host: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n",
        "Host: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Host: x\r\nTransfer-Encoding: gzip, chunked\r\n",
        "Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Host: x\r\nHost: x\r\n",
        "Host: x\r\nHost: y\r\n",
        "",
        "Host: x\r\nX-A: b\r\n folded\r\n",
        "Host: x\nX-A: b\r\n",
        "Host: x\r\nX-A: b\0c\r\n",
        "Host: x\r\nX-A : b\r\n",
        "Host: x\r\nContent-Length: -4\r\n",
        "Host: x\r\nContent-Length: 18446744073709551616\r\n",
        "Host: x\r\nTransfer-Encoding: chunked, identity\r\n",
        "Host: x\r\nX-A: b\rContent-Length: 4\r\n",
        "Host: x y\r\n",
    ] {
        let bytes = raw(
            &client,
            format!("{post}{head}{auth}\r\n{smuggled}{smuggled}"),
        );
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{head:?}: {text}");
        let answer = http::parse(&bytes).unwrap();
        assert_eq!(answer.status, 400, "{head:?}: {text}");
        answer.error_code();
    }
    let bytes = raw(
        &client,
        format!(
            "POST http://other/v1/chat/completions HTTP/1.1\r\nHost: x\r\n{auth}\r\n{smuggled}"
        ),
    );
    assert_eq!(http::parse(&bytes).unwrap().status, 400);
    let bytes = raw(
        &client,
        format!("GET /v1/models HTTP/1.1\nHost: x\n{auth}\n"),
    );
    assert_eq!(http::parse(&bytes).unwrap().status, 400);
}

#[test]
fn noise_closes_the_connection() {
    let client = client();
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(8);
    let noise = [&b"\x00\xff\x13\x37"[..], &[0xaa; 4096], b"\r\n\r\n"].concat();
    for bytes in [
        &tls[..],
        &noise,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame, by no means, not at all",
        b"\r\n\r\n\r\n\r\nGET\r\n\r\n",
    ] {
        let mut connection = Connection::open(client.address);
        connection.write(bytes);
        connection.finish();
        let answer = connection.rest();
        if let Some(answer) = http::parse(&answer) {
            assert_eq!(answer.status, 400);
        }
        good(&client);
    }
}

#[test]
fn unknown_paths_and_methods_get_openais_shape() {
    let client = client();
    let answer = refused(
        &client,
        client.request("GET", "/v1/nothing/here"),
        404,
        "unknown_url",
    );
    let error = &answer.json()["error"];
    assert_eq!(error["type"], "invalid_request_error");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("/v1/nothing/here"),
        "{error}"
    );
    for target in [
        "/",
        "/admin",
        "/metrics",
        "/v1/files/../models",
        "/v1/files/%2e%2e/x",
    ] {
        refused(&client, client.request("GET", target), 404, "unknown_url");
    }
    for (method, target) in [
        ("GET", "/v1/embeddings"),
        ("PUT", "/v1/chat/completions"),
        ("DELETE", "/v1/models"),
    ] {
        let answer = client.request(method, target).send();
        assert_eq!(answer.status, 405, "{method} {target}: {}", answer.text());
        answer.error_code();
        good(&client);
    }
}

#[test]
fn a_refusal_repeats_nothing_of_the_body() {
    let client = client();
    let body = format!("{{\"messages\":[\"{CANARY}\"],}}");
    let answer = client
        .request("POST", "/v1/chat/completions")
        .header("content-type", "application/json")
        .body(body)
        .send();
    assert_eq!(answer.status, 400);
    assert!(!answer.text().contains(CANARY), "{}", answer.text());
}
