"""Operations without a room of their own at the sample provider: it echoes what arrived, to the byte.

One of each kind stands for all of the API: a path with ids, a query that repeats a name, JSON with fields nobody
knows, a form, bytes, each method.
"""

import hashlib
import json

import httpx2
import pytest

from conftest import BASE_URL, DIRECT

UNKNOWN = json.dumps({"b": [1, 2.50, 1e3], "a": "文", "nobody_knows": {"x": None}}, ensure_ascii=False).encode()
BINARY = bytes(range(256)) * 1000


def send(client, method, path, **more):
    headers = {"authorization": f"Bearer {client.api_key}"} | more.pop("headers", {})
    answer = httpx2.request(method, BASE_URL + path, headers=headers, timeout=30, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("method", "path", "content_type", "body"),
    [
        ("POST", "/conversations", "application/json", UNKNOWN),
        ("GET", "/conversations/conv_1/items?limit=2&include[]=a&include[]=b%20c", None, b""),
        ("DELETE", "/conversations/conv_1/items/msg_2", None, b""),
        ("POST", "/assistants", "application/json", UNKNOWN),
        ("POST", "/threads/thread_1/runs/run_2/submit_tool_outputs", "application/json", UNKNOWN),
        ("POST", "/containers/cntr_1/files", "multipart/form-data; boundary=b", b"--b--\r\n"),
        ("GET", "/containers/cntr_1/files/cfile_2/content", None, b""),
        ("POST", "/evals/eval_1/runs", "application/json", UNKNOWN),
        ("POST", "/realtime/client_secrets", "application/json", UNKNOWN),
        ("POST", "/realtime/calls", "application/sdp", BINARY),
        ("POST", "/responses/input_tokens", "application/json", UNKNOWN),
        ("GET", "/organization/usage/completions?start_time=1&group_by[]=model", None, b""),
        ("POST", "/fine_tuning/alpha/graders/run", "application/json", UNKNOWN),
    ],
)
def test_arrives_to_the_byte(client, method, path, content_type, body):
    headers = {"content-type": content_type} if content_type else {}
    echo = send(client, method, path, headers=headers, content=body or None)
    wanted_path, _, wanted_query = path.partition("?")
    assert echo["object"] == "sample.echo"
    assert (echo["method"], echo["path"]) == (method, "/v1" + wanted_path)
    assert (echo["query"] or "") == wanted_query
    assert echo["content_type"] == content_type
    assert (echo["body_bytes"], echo["body_sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_headers_that_matter_arrive_and_the_key_does_not(client, sample):
    client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": "hi"}],
        extra_headers={"OpenAI-Beta": "assistants=v2"},
    )
    arrived = dict(sample.stats()["last_request"]["headers"])
    assert arrived["openai-beta"] == "assistants=v2"
    assert arrived["content-type"] == "application/json"
    if not DIRECT:
        assert arrived["authorization"] != "…" + client.api_key[-4:], "the client's key went to the provider"
