"""Streams side by side, each of which must come whole and exact, whatever happens to the network meanwhile.

    streams.py [STREAMS] [WORDS]

Asks through OPENAI_BASE_URL, or in turn through several that are parted by commas, with OPENAI_API_KEY. The sample
provider counts up to WORDS in every stream, ten a second, so a word that is lost, doubled or out of order shows. Prints
a line a second, and at the end how many streams came whole and the longest silence in any of them.
"""

import asyncio
import os
import sys
import time

from openai import AsyncOpenAI

MODEL = "gpt-4o-mini"


class Stream:
    def __init__(self, number, words):
        self.number = number
        self.words = words
        self.text = ""
        self.silence = 0.0
        self.fault = None

    async def run(self, client):
        try:
            asked = [{"role": "user", "content": "Count."}]
            pace = {"sample_chunks": str(self.words), "sample_token_ms": "100"}
            stream = await client.chat.completions.create(model=MODEL, messages=asked, metadata=pace, stream=True)
            last, finished = time.monotonic(), False
            async for chunk in stream:
                now = time.monotonic()
                self.silence = max(self.silence, now - last)
                last = now
                for choice in chunk.choices:
                    self.text += choice.delta.content or ""
                    finished = finished or choice.finish_reason == "stop"
            if not finished:
                self.fault = "ended without a finish reason"
            elif self.text.split() != [str(word) for word in range(1, self.words + 1)]:
                self.fault = "words are lost, doubled or out of order"
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"


async def watch(streams):
    while True:
        await asyncio.sleep(1)
        words = sum(len(stream.text.split()) for stream in streams)
        broken = sum(stream.fault is not None for stream in streams)
        print(f"{words} words in {len(streams)} streams, {broken} broken", flush=True)


async def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    words = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    urls = os.environ["OPENAI_BASE_URL"].split(",")
    clients = [AsyncOpenAI(base_url=url, max_retries=0) for url in urls]
    streams = [Stream(number, words) for number in range(count)]
    watching = asyncio.create_task(watch(streams))
    await asyncio.gather(*(stream.run(clients[stream.number % len(clients)]) for stream in streams))
    watching.cancel()
    faults = [stream for stream in streams if stream.fault]
    for stream in faults[:5]:
        print(f"stream {stream.number}: {stream.fault}")
    silence = max(stream.silence for stream in streams)
    print(f"streams: {count - len(faults)} of {count} whole, longest silence {silence * 1000:.0f} ms")
    sys.exit(1 if faults else 0)


asyncio.run(main())
