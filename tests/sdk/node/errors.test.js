// Typed errors, streams that die, clients that leave, and two hundred streams at once.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { ask, client, MODEL, stats, strict, uncounted, until } from "./sample.js";

test("wrong key", async () => {
  const stranger = new OpenAI({ apiKey: "sk-wrong", maxRetries: 0 });
  const call = stranger.chat.completions.create({ model: MODEL, messages: ask("hi") });
  await assert.rejects(call, (error) => error instanceof OpenAI.AuthenticationError && error.code === "invalid_api_key");
});

test("unknown model", async () => {
  const call = strict.chat.completions.create({ model: "no-such-model", messages: ask("hi") });
  await assert.rejects(call, (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
});

test("unknown path", async () => {
  await assert.rejects(strict.get("/no-such-path"), OpenAI.NotFoundError);
});

test("missing messages", async () => {
  await assert.rejects(strict.chat.completions.create({ model: MODEL }), OpenAI.BadRequestError);
});

test("a rate limit says when to come back", async () => {
  const metadata = { sample_fault: "429:2" };
  const call = strict.chat.completions.create({ model: MODEL, messages: ask("hi"), metadata });
  await assert.rejects(call, (error) => {
    const after = Number(error.headers.get("retry-after"));
    return error instanceof OpenAI.RateLimitError && after > 0 && after <= 2;
  });
  const answers = () => strict.chat.completions.create({ model: MODEL, messages: ask("hi") }).catch(() => null);
  assert.ok(await until(answers, 15_000, 250), "a credential that rested must come back");
});

test("a server's error", async () => {
  const metadata = { sample_fault: "500" };
  const call = strict.chat.completions.create({ model: MODEL, messages: ask("hi"), metadata });
  await assert.rejects(call, OpenAI.InternalServerError);
});

test("a stream that dies is never a clean end", async () => {
  const metadata = { sample_fault: "die:5", sample_chunks: "40" };
  await assert.rejects(async () => {
    const request = { model: MODEL, messages: ask("count"), stream: true, metadata };
    for await (const _ of await strict.chat.completions.create(request));
  });
});

test("a client that leaves is noticed", { skip: uncounted }, async () => {
  // Nothing runs but the question itself.
  assert.ok(await until(async () => (await stats()).in_flight === 1), "earlier requests still run at the provider");
  const before = (await stats()).client_gone;
  const metadata = { sample_chunks: "2000", sample_token_ms: "20" };
  const stream = await client.chat.completions.create({ model: MODEL, messages: ask("count"), stream: true, metadata });
  let read = 0;
  for await (const _ of stream) {
    read += 1;
    if (read === 5) break;
  }
  assert.ok(await until(async () => (await stats()).client_gone > before));
});

test("two hundred streams, each complete", async () => {
  const one = async (number) => {
    const request = { model: MODEL, messages: ask(`stream number ${number}.`), stream: true };
    let text = "";
    for await (const chunk of await strict.chat.completions.create(request)) {
      text += chunk.choices[0]?.delta.content ?? "";
    }
    return text;
  };
  const texts = await Promise.all(Array.from({ length: 200 }, (_, number) => one(number)));
  texts.forEach((text, number) => {
    assert.ok(text.includes(`"stream number ${number}."`) && text.endsWith("as a real model's would."), text);
  });
});
