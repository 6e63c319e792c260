// The server: what is asked of it, and what is said where it does not answer.

import { settings } from "./settings.js";

/** What went wrong, in words for people. `kind`: network, key, model, busy, refused or broken. */
export class Failure extends Error {
  constructor(kind, message, status = 0) {
    super(message);
    Object.assign(this, { kind, status });
  }
}

const KINDS = { 401: "key", 402: "refused", 404: "model", 429: "busy", 503: "busy" };
const UNREACHABLE = "The server does not answer. It was stopped, or the way to it is gone.";
const BROKEN = "The connection broke off before the answer was complete.";

/** Asks; a response that is an error is thrown as a [Failure]. */
export async function api(path, options = {}, key = settings.key) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw error instanceof TypeError && /header|ByteString|ISO-8859/i.test(error.message)
      ? new Failure("key", "This key has characters that no key has.")
      : new Failure("network", UNREACHABLE);
  }
  if (response.ok) return response;
  throw await failure(response);
}

async function failure(response) {
  const body = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  const text = body?.error?.message ?? `The server answered ${response.status}.`;
  const message = wait ? `${text} Try again in ${wait} s.` : text;
  return new Failure(KINDS[response.status] ?? "refused", message, response.status);
}

export async function models() {
  return (await (await api("v1/models")).json()).data;
}

/** What is left of the key's money, or "". */
export async function balance() {
  const response = await api("user/balance");
  const [info] = (await response.json()).balance_infos;
  return info ? `${Number(info.total_balance).toFixed(4)} ${info.currency} left` : "";
}

/**
 * Asks for an answer and calls for each part of it: `text`, `thought`, `note` (of a request that waits), `reason` and
 * `usage`. Ends when the answer is whole, and throws where it is not.
 */
export async function stream(body, signal, on) {
  let whole = false;
  await lines("v1/chat/completions", body, signal, (line) => {
    whole = event(line, on) || whole;
  });
  if (!whole) throw new Failure("broken", BROKEN);
}

/** Sends a request and calls for each line of the stream that answers it. */
async function lines(path, body, signal, each) {
  const headers = { "Content-Type": "application/json" };
  const response = await api(path, { method: "POST", body: JSON.stringify(body), headers, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  for (;;) {
    const part = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Failure("broken", BROKEN);
    });
    if (part.done) return;
    const [first, ...others] = part.value.split("\n");
    parts.push(first);
    for (const next of others) {
      each(parts.join("")); // lines with pictures come in many parts
      parts = [next];
    }
  }
}

/**
 * Asks for `body.n` pictures and calls for `note` (of a request that waits), `progress` (codes drawn, of all),
 * `partial` and `picture` with OpenAI's events. Ends when all are there, and throws where they are not.
 */
export async function draw(body, signal, on) {
  let left = body.n;
  await lines("v1/images/generations", body, signal, (line) => {
    if (line.startsWith(": waiting")) on.note(line.slice(2));
    const progress = /^: drawing: (\d+) of (\d+) codes/.exec(line);
    if (progress) on.progress(Number(progress[1]), Number(progress[2]));
    if (!line.startsWith("data: ")) return;
    const found = JSON.parse(line.slice(6));
    if (found.error) throw new Failure("broken", found.error.message);
    if (found.type === "image_generation.partial_image") on.partial(found);
    if (found.type === "image_generation.completed") {
      left--;
      on.picture(found);
    }
  });
  if (left) throw new Failure("broken", "The connection broke off before the pictures were complete.");
}

/** Reads a line; whether it is the one behind the last part. */
function event(line, on) {
  if (line.startsWith(": waiting")) on.note?.(line.slice(2));
  if (!line.startsWith("data: ")) return false;
  if (line === "data: [DONE]") return true;
  const { error, usage, choices } = JSON.parse(line.slice(6));
  if (error) throw new Failure("broken", error.message);
  if (usage) on.usage(usage);
  const [choice] = choices ?? [];
  if (choice?.delta?.reasoning_content) on.thought(choice.delta.reasoning_content);
  if (choice?.delta?.content) on.text(choice.delta.content);
  if (choice?.finish_reason) on.reason(choice.finish_reason);
  return false;
}
