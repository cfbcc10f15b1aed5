// Files, uploads, batches and vector stores.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import { client, collect, until } from "./sample.js";

test("a file comes back as it was", async () => {
  const content = Buffer.from("第一行\n{}\n".repeat(1000));
  const made = await client.files.create({ file: await toFile(content, "data.jsonl"), purpose: "batch" });
  assert.equal(made.bytes, content.length);
  const back = Buffer.from(await (await client.files.content(made.id)).arrayBuffer());
  assert.deepEqual(back, content);
  const listed = await collect(client.files.list({ limit: 100 }));
  assert.ok(listed.some((file) => file.id === made.id));
  assert.ok((await client.files.delete(made.id)).deleted);
  await assert.rejects(client.files.retrieve(made.id), OpenAI.NotFoundError);
});

test("an upload in parts", async () => {
  const about = { bytes: 100_000, filename: "parts.txt", mime_type: "text/plain", purpose: "user_data" };
  const upload = await client.uploads.create(about);
  const ids = [];
  for (const size of [70_000, 30_000]) {
    const data = await toFile(Buffer.alloc(size, size % 251), "part");
    ids.push((await client.uploads.parts.create(upload.id, { data })).id);
  }
  const done = await client.uploads.complete(upload.id, { part_ids: ids });
  assert.equal(done.file.bytes, 100_000);
});

test("a batch", async () => {
  const file = await client.files.create({ file: await toFile(Buffer.from("{}\n"), "in.jsonl"), purpose: "batch" });
  const about = { input_file_id: file.id, endpoint: "/v1/chat/completions", completion_window: "24h" };
  const batch = await client.batches.create(about);
  const done = async () => (await client.batches.retrieve(batch.id)).status === "completed";
  assert.ok(await until(done, 10_000, 100));
});

test("a vector store", async () => {
  const file = await client.files.create({ file: await toFile(Buffer.from("The sea.\n"), "a.txt"), purpose: "assistants" });
  const store = await client.vectorStores.create({ name: "facts", file_ids: [file.id] });
  assert.equal(store.file_counts.completed, 1);
  const found = await client.vectorStores.search(store.id, { query: "sea" });
  assert.equal(found.data[0].content[0].text, "The sea.");
  assert.ok((await client.vectorStores.delete(store.id)).deleted);
});
