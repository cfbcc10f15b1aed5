// Chat: whole, streamed in time, tools, structured output, embeddings, moderations, models.

import assert from "node:assert/strict";
import { test } from "node:test";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ask, client, collect, DIRECT, MODEL } from "./sample.js";

test("a whole answer, with its headers", async () => {
  const { data, response } = await client.chat.completions
    .create({ model: MODEL, messages: ask("hello 4711") })
    .withResponse();
  assert.match(data.choices[0].message.content, /hello 4711/);
  assert.equal(data.model, MODEL);
  assert.ok(data.usage.total_tokens > 0);
  assert.ok(response.headers.get("x-request-id"));
  assert.ok(response.headers.get("openai-processing-ms"));
});

test("chunks arrive spread in time", async () => {
  const [chunks, gap] = [30, 30];
  const metadata = { sample_chunks: String(chunks), sample_token_ms: String(gap) };
  const stream = await client.chat.completions.create({ model: MODEL, messages: ask("count"), stream: true, metadata });
  const arrivals = [];
  let text = "";
  for await (const chunk of stream) {
    if (!chunk.choices[0]?.delta.content) continue;
    arrivals.push(performance.now());
    text += chunk.choices[0].delta.content;
  }
  assert.equal(text, Array.from({ length: chunks }, (_, at) => at + 1).join(" "));
  assert.ok(arrivals.at(-1) - arrivals[0] >= ((chunks - 1) * gap) / 2);
  const apart = arrivals.filter((at, index) => index > 0 && at - arrivals[index - 1] > gap / 4).length;
  assert.ok(apart >= chunks / 2, `${apart} of ${chunks} chunks came by themselves`);
});

test("a stream ends with its usage, in Chinese too", async () => {
  const stream = await client.chat.completions.create({
    model: MODEL,
    messages: ask("用一句话介绍你自己"),
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = await collect(stream);
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.match(text, /「用一句话介绍你自己」/);
  assert.ok(chunks.at(-1).usage.completion_tokens > 0);
});

const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

test("a tool is called, whole and streamed", async () => {
  const request = { model: MODEL, messages: ask("what is the weather?"), tools: [weather] };
  const whole = await client.chat.completions.create(request);
  const call = whole.choices[0].message.tool_calls[0];
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Shanghai" });
  const streamed = await client.chat.completions.stream(request).finalChatCompletion();
  assert.equal(streamed.choices[0].message.tool_calls[0].function.name, "weather");
  assert.equal(streamed.choices[0].finish_reason, "tool_calls");
});

test("structured output", async () => {
  const Solution = z.object({ steps: z.array(z.object({ text: z.string(), value: z.number() })), sure: z.boolean() });
  const parsed = await client.chat.completions.parse({
    model: MODEL,
    messages: ask("solve it"),
    response_format: zodResponseFormat(Solution, "solution"),
  });
  assert.ok(parsed.choices[0].message.parsed.steps.length > 0);
});

test("completions", async () => {
  const answer = await client.completions.create({ model: "gpt-3.5-turbo-instruct", prompt: "say 1", max_tokens: 50 });
  assert.match(answer.choices[0].text, /say 1/);
});

test("embeddings", async () => {
  const request = { model: "text-embedding-3-small", input: ["猫", "狗"], dimensions: 64 };
  const coded = await client.embeddings.create(request);
  const plain = await client.embeddings.create({ ...request, encoding_format: "float" });
  assert.equal(coded.data.length, 2);
  coded.data[0].embedding.forEach((value, at) => assert.ok(Math.abs(value - plain.data[0].embedding[at]) < 1e-6));
});

test("moderations", async () => {
  const judged = await client.moderations.create({ input: ["hello", "I will kill it"] });
  assert.deepEqual(judged.results.map((result) => result.flagged), [false, true]);
});

test("models", async () => {
  const names = (await collect(client.models.list())).map((model) => model.id);
  assert.ok(names.includes(MODEL));
  if (DIRECT) assert.ok(names.includes("sora-2"));
});
