// What every test stands on: clients from the environment, and the sample provider's counters.
//
// OPENAI_BASE_URL and OPENAI_API_KEY name what is tested; SAMPLE_PROVIDER_URL the sample provider behind it.
// SAMPLE_DIRECT=1 says that there is no network between.

import OpenAI from "openai";

export const BASE_URL = process.env.OPENAI_BASE_URL.replace(/\/$/, "");
export const DIRECT = process.env.SAMPLE_DIRECT === "1";
const PROVIDER = process.env.SAMPLE_PROVIDER_URL ?? (DIRECT ? BASE_URL.replace(/\/v1$/, "") : undefined);

export const MODEL = "gpt-4o-mini";

export const client = new OpenAI({ timeout: 60_000 });

/** A client that does not retry, so that a test sees the first answer. */
export const strict = new OpenAI({ maxRetries: 0, timeout: 60_000 });

export const ask = (text) => [{ role: "user", content: text }];

export async function stats() {
  const answer = await fetch(new URL("/sample/stats", PROVIDER));
  return answer.json();
}

/** Why a test that reads the provider's counters cannot run, or false. */
export const uncounted = PROVIDER ? false : "SAMPLE_PROVIDER_URL is not set";

/** Polls until `holds` gives something true; that, or the last value when time is up. */
export async function until(holds, milliseconds = 10_000, every = 20) {
  const end = Date.now() + milliseconds;
  for (;;) {
    const value = await holds();
    if (value || Date.now() > end) return value;
    await new Promise((resolve) => setTimeout(resolve, every));
  }
}

export async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}
