// Images, speech, transcripts and videos.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import { client, until } from "./sample.js";

const PNG = Buffer.from([0x89, 0x50, 0x4e, 0x47]);

test("images", async () => {
  const made = await client.images.generate({ model: "gpt-image-1", prompt: "蓝色", n: 2 });
  const bytes = Buffer.from(made.data[0].b64_json, "base64");
  assert.equal(made.data.length, 2);
  assert.deepEqual(bytes.subarray(0, 4), PNG);
  const image = await toFile(bytes, "pixel.png", { type: "image/png" });
  const edited = await client.images.edit({ model: "gpt-image-1", image, prompt: "bluer" });
  assert.ok(edited.data[0].b64_json);
});

test("speech is streamed", async () => {
  const input = "a sentence that is long enough for some chunks ".repeat(4);
  const answer = await client.audio.speech.create({ model: "tts-1", voice: "alloy", input });
  const arrivals = [];
  let size = 0;
  for await (const chunk of answer.body) {
    arrivals.push(performance.now());
    size += chunk.length;
  }
  assert.ok(size >= 8 * 1024 && size % 1024 === 0);
  assert.ok(arrivals.length >= 4 && arrivals.at(-1) - arrivals[0] > 50);
});

test("transcripts, whole and streamed", async () => {
  const audio = Buffer.alloc(200_000, 7);
  const digest = createHash("sha256").update(audio).digest("hex");
  const file = () => toFile(audio, "voice.wav", { type: "audio/wav" });
  const plain = await client.audio.transcriptions.create({ model: "whisper-1", file: await file() });
  assert.ok(plain.text.includes(digest));
  // The model behind the file, as some callers send it.
  const behind = await client.audio.transcriptions.create({ file: await file(), model: "whisper-1" });
  assert.ok(behind.text.includes(digest));
  const request = { model: "gpt-4o-transcribe", file: await file(), stream: true };
  let text = "";
  for await (const event of await client.audio.transcriptions.create(request)) {
    if (event.type === "transcript.text.delta") text += event.delta;
  }
  assert.ok(text.includes(digest));
});

test("a video from prompt to content", async () => {
  const video = await client.videos.create({ model: "sora-2", prompt: "a calm sea" });
  const done = async () => (await client.videos.retrieve(video.id)).status === "completed";
  assert.ok(await until(done, 10_000, 100));
  const content = await (await client.videos.downloadContent(video.id)).arrayBuffer();
  assert.equal(content.byteLength, 256 << 10);
  await client.videos.delete(video.id);
  await assert.rejects(client.videos.retrieve(video.id), OpenAI.NotFoundError);
});
