"""What every test stands on: clients from the environment, and the sample provider's counters and faults.

OPENAI_BASE_URL and OPENAI_API_KEY name what is tested; SAMPLE_PROVIDER_URL the sample provider behind it (for
counters). SAMPLE_DIRECT=1 says that there is no network between, and leaves out what only a network does.
"""

import json
import os
import time
import urllib.request

import openai
import pytest

BASE_URL = os.environ["OPENAI_BASE_URL"].rstrip("/")
DIRECT = os.environ.get("SAMPLE_DIRECT") == "1"
PROVIDER = os.environ.get("SAMPLE_PROVIDER_URL") or (BASE_URL.removesuffix("/v1") if DIRECT else None)
WEBSOCKET_URL = "ws" + BASE_URL.removeprefix("http")


class Sample:
    """The sample provider beside its API."""

    def call(self, method, path, body=None):
        if PROVIDER is None:
            pytest.skip("needs the sample provider's counters or faults, which a real provider lacks: SAMPLE_PROVIDER_URL is not set")
        request = urllib.request.Request(
            PROVIDER.rstrip("/") + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def stats(self):
        return self.call("GET", "/sample/stats")


def until(true, seconds=10.0, every=0.02):
    """Polls until `true()` holds; its value, or the last one when time is up."""
    end = time.monotonic() + seconds
    while True:
        value = true()
        if value or time.monotonic() > end:
            return value
        time.sleep(every)


@pytest.fixture(scope="session")
def sample():
    return Sample()


@pytest.fixture(scope="session")
def client():
    with openai.OpenAI(websocket_base_url=WEBSOCKET_URL, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def strict():
    """A client that does not retry, so that a test sees the first answer."""
    with openai.OpenAI(max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def ask():
    """The messages of a one-line prompt."""
    return lambda text: [{"role": "user", "content": text}]
