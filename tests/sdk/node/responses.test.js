// Responses: stored, streamed in order, listed, cancelled; structured output.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { client, collect, MODEL, until } from "./sample.js";

test("create, get, items, delete", async () => {
  const made = await client.responses.create({ model: MODEL, input: "hello 12" });
  assert.match(made.output_text, /hello 12/);
  assert.equal((await client.responses.retrieve(made.id)).output_text, made.output_text);
  const items = await collect(client.responses.inputItems.list(made.id));
  assert.equal(items[0].content[0].text, "hello 12");
  await client.responses.delete(made.id);
  await assert.rejects(client.responses.retrieve(made.id), OpenAI.NotFoundError);
});

test("a stream is in order", async () => {
  const events = await collect(await client.responses.create({ model: MODEL, input: "用中文回答", stream: true }));
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  assert.equal(events[0].type, "response.created");
  assert.equal(events.at(-1).type, "response.completed");
  const text = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(text.join(""), events.at(-1).response.output[0].content[0].text);
});

test("structured output", async () => {
  const Fair = z.object({ name: z.string(), day: z.number() });
  const format = zodTextFormat(Fair, "fair");
  const parsed = await client.responses.parse({ model: MODEL, input: "a fair", text: { format } });
  assert.equal(typeof parsed.output_parsed.day, "number");
});

test("in the background, to the end and cancelled", async () => {
  const made = await client.responses.create({ model: MODEL, input: "later", background: true });
  const done = async () => (await client.responses.retrieve(made.id)).status === "completed";
  assert.ok(await until(done, 10_000, 100));
  const other = await client.responses.create({ model: MODEL, input: "never", background: true });
  assert.equal((await client.responses.cancel(other.id)).status, "cancelled");
});
