"""Chat: whole, streamed in time, tools, structured output, completions, embeddings, moderations, models."""

import base64
import itertools
import json
import math
import struct
import time

import pydantic

from conftest import DIRECT

MODEL = "gpt-4o-mini"


def test_whole_answer(client, ask):
    answer = client.chat.completions.create(model=MODEL, messages=ask("hello 4711"))
    assert "hello 4711" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer._request_id


def test_chinese_prompt_gets_chinese(client, ask):
    answer = client.chat.completions.create(model=MODEL, messages=ask("用一句话介绍你自己"))
    assert "「用一句话介绍你自己」" in answer.choices[0].message.content


def test_headers_that_sdks_read_arrive(client, ask):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ask("hi"))
    assert raw.headers["x-request-id"]
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.headers["content-type"].startswith("application/json")
    assert "x-ratelimit-limit-requests" in raw.headers
    assert raw.parse().object == "chat.completion"


def test_limit_and_choices(client, ask):
    answer = client.chat.completions.create(model=MODEL, messages=ask("hi"), max_completion_tokens=3, n=2)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage.completion_tokens == 6


def test_chunks_arrive_spread_in_time(client, ask):
    chunks, gap = 30, 0.03
    arrivals, text = [], ""
    stream = client.chat.completions.create(
        model=MODEL,
        messages=ask("count"),
        stream=True,
        metadata={"sample_chunks": str(chunks), "sample_token_ms": str(int(gap * 1000))},
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            arrivals.append(time.monotonic())
            text += chunk.choices[0].delta.content
    assert text == " ".join(str(number) for number in range(1, chunks + 1))
    assert arrivals[-1] - arrivals[0] >= (chunks - 1) * gap / 2
    apart = sum(later - earlier > gap / 4 for earlier, later in itertools.pairwise(arrivals))
    assert apart >= chunks / 2, f"{apart} of {chunks} chunks came by themselves"


def test_stream_with_usage(client, ask):
    stream = client.chat.completions.create(
        model=MODEL, messages=ask("hi"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == "stop" and not any(reasons[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_large_prompt(client, ask):
    answer = client.chat.completions.create(model=MODEL, messages=ask("long " * 200_000))
    assert answer.usage.prompt_tokens > 200_000


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_tool_call_and_its_answer(client, ask):
    messages = ask("what is the weather in Shanghai?")
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    call = first.choices[0].message.tool_calls[0]
    assert first.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == {"city": "Shanghai"}
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "21 °C"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert second.choices[0].finish_reason == "stop" and second.choices[0].message.content


def test_tool_call_streamed(client, ask):
    stream = client.chat.completions.create(
        model=MODEL, messages=ask("hi"), tools=[WEATHER], tool_choice="required", stream=True
    )
    name, arguments = "", ""
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert name == "weather" and json.loads(arguments) == {"city": "Shanghai"}


class Step(pydantic.BaseModel):
    explanation: str
    value: int


class Solution(pydantic.BaseModel):
    steps: list[Step]
    answer: str
    sure: bool


def test_structured_output(client, ask):
    parsed = client.chat.completions.parse(model=MODEL, messages=ask("solve it"), response_format=Solution)
    assert isinstance(parsed.choices[0].message.parsed, Solution)
    assert parsed.choices[0].message.parsed.steps


def test_structured_output_streamed(client, ask):
    with client.chat.completions.stream(model=MODEL, messages=ask("solve it"), response_format=Solution) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed.answer


def test_completions(client):
    answer = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="say 1", max_tokens=50)
    assert "say 1" in answer.choices[0].text
    stream = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="say 2", max_tokens=50, stream=True)
    assert "say 2" in "".join(chunk.choices[0].text for chunk in stream)


def test_embeddings_as_base64_and_as_numbers(client):
    # The SDK asks for base64 unless told otherwise.
    coded = client.embeddings.create(model="text-embedding-3-small", input=["猫", "狗"], dimensions=64)
    plain = client.embeddings.create(model="text-embedding-3-small", input="猫", dimensions=64, encoding_format="float")
    assert [item.index for item in coded.data] == [0, 1]
    assert coded.data[0].embedding != coded.data[1].embedding
    for one, other in zip(coded.data[0].embedding, plain.data[0].embedding, strict=True):
        assert math.isclose(one, other, abs_tol=1e-6)
    raw = client.embeddings.with_raw_response.create(
        model="text-embedding-3-small", input="猫", dimensions=8, encoding_format="base64"
    )
    text = json.loads(raw.content)["data"][0]["embedding"]
    assert len(struct.unpack("<8f", base64.b64decode(text))) == 8


def test_moderations(client):
    calm = client.moderations.create(model="omni-moderation-latest", input="hello")
    angry = client.moderations.create(input=["hello", "I will kill it"])
    assert not calm.results[0].flagged
    assert [result.flagged for result in angry.results] == [False, True]


def test_models(client):
    names = {model.id for model in client.models.list()}
    assert MODEL in names
    if DIRECT:
        assert {"bench", "sora-2", "whisper-1"} <= names
    assert client.models.retrieve(MODEL).id == MODEL
