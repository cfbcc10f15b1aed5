"""Typed errors, as the SDK raises them, and answers that break."""

import httpx2
import openai
import pytest

from conftest import BASE_URL, DIRECT, until

MODEL = "gpt-4o-mini"


def test_wrong_key(ask):
    with openai.OpenAI(api_key="sk-wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            client.chat.completions.create(model=MODEL, messages=ask("hi"))
    assert raised.value.status_code == 401 and raised.value.code == "invalid_api_key"


def test_unknown_model(strict, ask):
    with pytest.raises(openai.NotFoundError) as raised:
        strict.chat.completions.create(model="no-such-model", messages=ask("hi"))
    assert raised.value.code == "model_not_found"
    assert "no-such-model" in raised.value.message


def test_unknown_path(strict):
    with pytest.raises(openai.NotFoundError) as raised:
        strict.get("/no-such-path", cast_to=object)
    assert raised.value.body["message"]


@pytest.mark.parametrize("body", [b"{", b'{"model": "gpt-4o-mini", "messages": [}', b"not json"])
def test_malformed_body(client, body):
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}
    answer = httpx2.post(BASE_URL + "/chat/completions", headers=headers, content=body, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_missing_messages(strict):
    with pytest.raises(openai.BadRequestError) as raised:
        strict.chat.completions.create(model=MODEL, messages=openai.omit)
    assert raised.value.body["message"]


def test_rate_limit_says_when_to_come_back(strict, ask):
    with pytest.raises(openai.RateLimitError) as raised:
        strict.chat.completions.create(model=MODEL, messages=ask("hi"), metadata={"sample_fault": "429:2"})
    assert 0 < float(raised.value.response.headers["retry-after"]) <= 2
    if DIRECT:
        assert raised.value.code == "rate_limit_exceeded"

    def answers():
        try:
            return strict.chat.completions.create(model=MODEL, messages=ask("hi"))
        except openai.RateLimitError:
            return None

    assert until(answers, seconds=15, every=0.25), "a credential that rested must come back"


@pytest.mark.parametrize("fault", ["500", "503"])
def test_server_errors(strict, ask, fault):
    with pytest.raises(openai.InternalServerError):
        strict.chat.completions.create(model=MODEL, messages=ask("hi"), metadata={"sample_fault": fault})


def test_a_stream_that_dies_is_never_a_clean_end(strict, ask):
    text = ""
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        stream = strict.chat.completions.create(
            model=MODEL,
            messages=ask("count"),
            stream=True,
            metadata={"sample_fault": "die:5", "sample_chunks": "40"},
        )
        for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    assert "40" not in text


def test_an_answer_shorter_than_it_says_is_an_error(strict, ask):
    with pytest.raises(openai.APIError):
        strict.chat.completions.create(model=MODEL, messages=ask("hi"), metadata={"sample_fault": "wrong-length"})


def test_a_drip_arrives_whole(strict, ask):
    answer = strict.chat.completions.create(
        model=MODEL, messages=ask("drop by drop"), metadata={"sample_fault": "drip:2"}
    )
    assert "drop by drop" in answer.choices[0].message.content
