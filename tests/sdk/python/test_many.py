"""Two hundred streams at once, and clients that leave in mid-stream."""

import asyncio

import openai

from conftest import until

MODEL = "gpt-4o-mini"
STREAMS = 200


def test_two_hundred_streams_each_complete():
    async def one(client, number):
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": f"stream number {number}."}], stream=True
        )
        text, reason = "", None
        async for chunk in stream:
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                reason = chunk.choices[0].finish_reason or reason
        return text, reason

    async def all_at_once():
        async with openai.AsyncOpenAI(max_retries=0, timeout=100) as client:
            return await asyncio.gather(*(one(client, number) for number in range(STREAMS)))

    for number, (text, reason) in enumerate(asyncio.run(all_at_once())):
        assert reason == "stop"
        assert f'"stream number {number}."' in text and text.endswith("as a real model's would."), text


def quiet(sample):
    """Waits until nothing runs but the question itself; how many clients have gone so far."""
    assert until(lambda: sample.stats()["in_flight"] == 1), "earlier requests still run at the provider"
    return sample.stats()["client_gone"]


def test_a_client_that_leaves_is_noticed(client, sample):
    before = quiet(sample)
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "count"}],
        stream=True,
        metadata={"sample_chunks": "2000", "sample_token_ms": "20"},
    )
    for _, _ in zip(range(5), stream):
        pass
    assert sample.stats()["client_gone"] == before
    stream.close()
    assert until(lambda: sample.stats()["client_gone"] > before, seconds=10)


def test_a_client_that_leaves_before_the_first_byte_is_noticed(sample):
    # The network waits ten seconds for the SDK's own retry, which takes up the same call.
    before = quiet(sample)

    async def give_up():
        async with openai.AsyncOpenAI(max_retries=0, timeout=0.5) as client:
            await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "hi"}],
                metadata={"sample_fault": "hang"},
            )

    try:
        asyncio.run(give_up())
    except openai.APITimeoutError:
        pass
    assert until(lambda: sample.stats()["client_gone"] > before, seconds=20)
