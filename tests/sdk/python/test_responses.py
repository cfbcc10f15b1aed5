"""Responses: whole, streamed in order, stored, listed, cancelled; tools and structured output."""

import json

import openai
import pydantic
import pytest

from conftest import until

MODEL = "gpt-4o-mini"


def test_create_get_items_delete(client):
    made = client.responses.create(model=MODEL, input="hello 12", instructions="be brief", metadata={"a": "b"})
    assert "hello 12" in made.output_text and made.status == "completed"
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    got = client.responses.retrieve(made.id)
    assert got.output_text == made.output_text and got.metadata == {"a": "b"}
    items = list(client.responses.input_items.list(made.id))
    assert items[0].content[0].text == "hello 12"
    second = client.responses.create(model=MODEL, input="and now", previous_response_id=made.id)
    assert second.previous_response_id == made.id
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_stream_is_in_order(client):
    events = list(client.responses.create(model=MODEL, input="用中文回答", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text and "「用中文回答」" in text
    again = list(client.responses.retrieve(events[-1].response.id, stream=True, starting_after=3))
    assert again[0].sequence_number == 4 and again[-1].type == "response.completed"


def test_stream_helper(client):
    with client.responses.stream(model=MODEL, input="hello") as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.output_text.delta" in kinds and "hello" in final.output_text


def test_tool(client):
    tool = {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    made = client.responses.create(model=MODEL, input="上海天气怎么样", tools=[tool])
    call = made.output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Shanghai"})
    answered = client.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "上海天气怎么样"},
            call.model_dump(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "21 °C"},
        ],
        tools=[tool],
    )
    assert answered.output_text


class Event(pydantic.BaseModel):
    name: str
    day: int


def test_structured_output(client):
    parsed = client.responses.parse(model=MODEL, input="a fair on the 7th", text_format=Event)
    assert isinstance(parsed.output_parsed, Event)


def test_background_runs_to_its_end_and_can_be_cancelled(client):
    made = client.responses.create(model=MODEL, input="later", background=True)
    assert made.status in ("queued", "in_progress")
    done = until(lambda: (got := client.responses.retrieve(made.id)).status == "completed" and got, every=0.1)
    assert done and done.output_text
    other = client.responses.create(model=MODEL, input="never", background=True)
    assert client.responses.cancel(other.id).status == "cancelled"
    assert client.responses.retrieve(other.id).status == "cancelled"
