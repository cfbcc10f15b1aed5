// Realtime over WebSocket. The SDK's own client insists on TLS, so over plain HTTP its address alone is mended;
// a second test authenticates as browsers do, by subprotocol.

import assert from "node:assert/strict";
import { test } from "node:test";
import { buildRealtimeURL } from "openai/realtime/internal-base";
import { WebSocket } from "ws";
import { client } from "./sample.js";

function address() {
  const url = buildRealtimeURL(client, "gpt-realtime");
  url.protocol = new URL(client.baseURL).protocol === "https:" ? "wss:" : "ws:";
  return url;
}

/** Sends a question, and gives back all events up to the end of the answer. */
function converse(socket) {
  return new Promise((resolve, reject) => {
    const events = [];
    const send = (event) => socket.send(JSON.stringify(event));
    socket.on("error", reject);
    socket.on("close", () => reject(new Error("closed in mid-answer")));
    socket.on("message", (data) => {
      const event = JSON.parse(data.toString());
      events.push(event);
      if (event.type === "session.created") {
        const content = [{ type: "input_text", text: "hello 99" }];
        send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
        send({ type: "response.create" });
      }
      if (event.type === "response.done") resolve(events);
    });
  });
}

function check(events) {
  const text = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.match(text.join(""), /hello 99/);
  assert.ok(events.at(-1).response.usage.total_tokens > 0);
}

test("a conversation, with the key in a header", async () => {
  const socket = new WebSocket(address(), { headers: { Authorization: `Bearer ${client.apiKey}` } });
  check(await converse(socket));
  socket.close();
});

test("a conversation, with the key in a subprotocol", async () => {
  const socket = new WebSocket(address(), ["realtime", `openai-insecure-api-key.${client.apiKey}`]);
  check(await converse(socket));
  assert.equal(socket.protocol, "realtime");
  socket.close();
});

test("a wrong key is refused", async () => {
  const socket = new WebSocket(address(), { headers: { Authorization: "Bearer sk-wrong" } });
  const status = await new Promise((resolve) => {
    socket.on("unexpected-response", (_, response) => resolve(response.statusCode));
    socket.on("open", () => resolve(101));
    socket.on("error", () => {});
  });
  assert.equal(status, 401);
  socket.terminate();
});
