"""Answers that were cut off, and taken up again: the provider is called once."""

import httpx2
import openai
import pytest

from conftest import BASE_URL, DIRECT, until

MODEL = "gpt-4o-mini"

pytestmark = pytest.mark.skipif(DIRECT, reason="only a network keeps answers")


def calls(sample):
    return sum(row["requests"] for row in sample.stats()["per_key"])


def words(stream):
    return "".join((chunk.choices[0].delta.content or "") if chunk.choices else "" for chunk in stream)


COUNT = {"sample_chunks": "40", "sample_token_ms": "20"}
WHOLE = " ".join(str(number) for number in range(1, 41))


def test_a_stream_cut_off_in_the_middle_is_taken_up_with_its_key(client, sample, ask):
    before = calls(sample)

    def create():
        return client.chat.completions.create(
            model=MODEL,
            messages=ask("count"),
            stream=True,
            metadata=COUNT,
            extra_headers={"Idempotency-Key": f"cut-off-{before}"},
        )

    stream = create()
    for _, _ in zip(range(5), stream):
        pass
    # The connection goes, as when a train enters a tunnel.
    stream.close()
    assert words(create()) == WHOLE
    assert words(create()) == WHOLE, "and again, after its end"
    assert calls(sample) == before + 1


def test_an_answer_is_taken_up_by_its_exchange(client, sample, ask):
    before = calls(sample)
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=ask("hello 4711"),
        extra_headers={"Idempotency-Key": f"by-exchange-{before}"},
    )
    path = f"/exchanges/{raw.headers['x-request-id']}/stream"
    again = client.get(path, cast_to=openai.types.chat.ChatCompletion)
    assert again == raw.parse()
    headers = {"authorization": f"Bearer {client.api_key}"}
    rest = httpx2.get(BASE_URL + path + "?from=10", headers=headers, timeout=30)
    assert raw.text.encode()[10:] == rest.content
    assert calls(sample) == before + 1


def test_another_request_under_the_same_key_is_refused(strict, sample, ask):
    headers = {"Idempotency-Key": f"reused-{calls(sample)}"}
    strict.chat.completions.create(model=MODEL, messages=ask("one"), extra_headers=headers)
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        strict.chat.completions.create(model=MODEL, messages=ask("two"), extra_headers=headers)
    assert raised.value.code == "idempotency_key_reused"


def test_the_sdks_own_retry_after_a_time_out_takes_up_the_same_call(sample, ask):
    assert until(lambda: sample.stats()["in_flight"] == 1), "earlier requests still run at the provider"
    before = calls(sample)
    with openai.OpenAI(timeout=1.0, max_retries=2) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=ask("slow 4712"), metadata={"sample_fault": "slow-first:2000"}
        )
    assert "slow 4712" in answer.choices[0].message.content
    assert calls(sample) == before + 1
