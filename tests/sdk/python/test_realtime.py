"""Realtime over WebSocket, by the SDK's own client."""

import time

import openai
import pytest

from conftest import WEBSOCKET_URL, until


def said(text):
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def receive_until(connection, kind):
    events = []
    while not events or events[-1].type != kind:
        events.append(connection.recv())
    return events


def test_conversation(client):
    with client.realtime.connect(model="gpt-realtime") as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(session={"type": "realtime", "instructions": "be kind"})
        updated = connection.recv()
        assert updated.type == "session.updated" and updated.session.instructions == "be kind"
        connection.conversation.item.create(item=said("hello 99"))
        assert receive_until(connection, "conversation.item.done")[0].type == "conversation.item.added"
        connection.response.create()
        events, arrivals = [], []
        while not events or events[-1].type != "response.done":
            events.append(connection.recv())
            arrivals.append(time.monotonic())
        assert events[0].type == "response.created"
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert "hello 99" in text
        assert arrivals[-1] - arrivals[0] > 0.1
        assert events[-1].response.status == "completed" and events[-1].response.usage.total_tokens > 0


def test_a_response_can_be_cancelled(client):
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.recv()
        connection.conversation.item.create(item=said("speak for a while"))
        receive_until(connection, "conversation.item.done")
        connection.response.create()
        receive_until(connection, "response.output_text.delta")
        connection.response.cancel()
        assert receive_until(connection, "response.done")[-1].response.status == "cancelled"


def test_what_is_no_event_gets_an_error_and_the_session_goes_on(client):
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.recv()
        connection.send({"type": "no.such.event"})
        assert connection.recv().type == "error"
        connection.session.update(session={"type": "realtime"})
        assert connection.recv().type == "session.updated"


def test_a_wrong_key_is_refused():
    with openai.OpenAI(api_key="sk-wrong", websocket_base_url=WEBSOCKET_URL) as client:
        with pytest.raises(Exception, match="401"):
            with client.realtime.connect(model="gpt-realtime") as connection:
                connection.recv()


def test_a_session_ends_at_the_provider_when_its_client_leaves(client, sample):
    assert until(lambda: sample.stats()["sessions_open"] == 0), "earlier sessions are still open"
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.recv()
        assert sample.stats()["sessions_open"] == 1
    assert until(lambda: sample.stats()["sessions_open"] == 0)
