// Answers and drawings: asked for, read as they come, kept, stopped. They go on whatever conversation is looked at.

import { draw, stream } from "./api.js";
import { newId } from "./dom.js";
import { parts } from "./files.js";
import { settings } from "./settings.js";
import { add, change, drawerOf, emit, isStored, modelOf, on, removeMessage, save, state, tell } from "./state.js";
import * as store from "./store.js";
import { titleOf, upTo } from "./tree.js";

/** How often what has come is shown to other tabs, and kept. */
const TELL_MS = 300;
const KEEP_MS = 1500;
/** After which silence of the tab that reads an answer it counts as closed. */
const SILENCE_MS = 5000;

/** How often a picture is shown before it is finished, and how often all of a drawing are: it takes seconds each time. */
const PARTIAL = 2;
const PARTIAL_ALL = 4;

/** When other tabs were last heard of, by the answers that they read. */
const heard = new Map();

/**
 * Says something in a conversation, after the message `parent`, and asks for the answer: with `drawing`, which is
 * `{n, cfg, seed}`, for pictures of it.
 */
export async function send(conversation, parent, content, files, drawing) {
  const message = { ...made(conversation, parent, "user"), content, files: files.map(({ data, ...file }) => file) };
  if (drawing) message.draw = drawing;
  if (!conversation.title) conversation.title = titleOf(content) || titleOf(files[0]?.name ?? "");
  const kept = files.filter(({ data }) => data);
  const pictures = kept.map(({ id, data }) => ({ id, data, conversation: conversation.id }));
  await answer(conversation, message.id, [message], pictures);
}

function made(conversation, parent, role) {
  return { id: newId(), conversation: conversation.id, parent, role, content: "", created: Date.now() };
}

/** Asks for an answer to the message `parent`, which is the last of `before` if that is new. */
async function answer(conversation, parent, before = [], files = [], drawing = before.at(-1)?.draw) {
  const message = {
    ...made(conversation, parent, "assistant"),
    created: Date.now() + 1,
    reasoning: "",
    status: "running",
    model: drawing ? drawerOf(conversation) : modelOf(conversation),
    ...(drawing && { drawing, pictures: [], progress: 0 }),
  };
  if (!drawing) conversation.model ||= message.model;
  const running = { message, control: new AbortController(), note: "", partials: [] };
  state.answers.set(message.id, running);
  await add(conversation, [...before, message], files);
  await run(conversation, running);
}

/** Asks again: in the place of an answer that has not come, else as another version. What is drawn again is another. */
export async function again(conversation, message) {
  if (!message.content && !message.reasoning && !message.pictures?.length) await removeMessage(message);
  const { drawing, status } = message;
  const another = drawing && { ...drawing, ...(status === "done" && { seed: undefined }) };
  await answer(conversation, message.parent, [], [], another);
}

export function stop(message) {
  const running = state.answers.get(message.id);
  if (running) running.control.abort();
  else tell({ type: "stop", id: message.id });
}

/** Whether an answer is still coming, here or in another tab. */
export function isRunning(message) {
  return message?.status === "running";
}

/** The answers of a conversation that this tab or another reads. */
export function runningIn(conversation) {
  const here = [...state.answers.values()].some(({ message }) => message.conversation === conversation.id);
  return here || [...heard.values()].some((other) => other.conversation === conversation.id);
}

async function run(conversation, running) {
  const { message, control } = running;
  try {
    if (message.drawing) await drawn(conversation, running);
    else await read(request(conversation, message.model, await listed(conversation, message)), running);
    if (message.status === "running") message.status = "done";
  } catch (error) {
    failed(message, error);
  }
  state.answers.delete(message.id);
  tell({ type: "ended", message });
  await save(message);
  const seen = conversation === state.current && document.visibilityState === "visible";
  await change(conversation, { updated: Date.now(), ...(!seen && { unseen: true }) });
  emit("ended", { conversation, message });
}

function failed(message, error) {
  if (error.name === "AbortError") return void (message.status = "stopped");
  if (!error.kind) console.error(error);
  Object.assign(message, { status: "failed", error: { kind: error.kind ?? "broken", text: error.message } });
}

/** The messages of a request: text with files as blocks of code, pictures as parts; no answers without a text. */
async function listed(conversation, { parent, model }) {
  const stored =
    conversation === state.current
      ? state.messages
      : new Map((await store.all("messages", conversation.id)).map((message) => [message.id, message]));
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  const sees = state.models.find(({ id }) => id === model)?.images !== false;
  for (const message of upTo(parent, stored)) {
    if (message.draw) continue; // the model has answered nothing there
    if (message.role === "user") messages.push({ role: "user", content: await parts(message, sees) });
    else if (message.content) messages.push({ role: "assistant", content: message.content });
  }
  return messages;
}

function request(conversation, model, messages) {
  const number = (text) => (text === "" ? undefined : Number(text));
  return {
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    temperature: number(settings.temperature),
    top_p: number(settings.top_p),
    max_tokens: number(settings.max_tokens),
    seed: number(settings.seed),
    reasoning_effort: conversation.thinking || undefined,
  };
}

/** Draws what the message before says. Pictures are kept as they come. */
async function drawn(conversation, running) {
  const { message, control } = running;
  const { n, cfg, seed } = message.drawing;
  const said = state.messages.get(message.parent) ?? (await store.get("messages", message.parent));
  const partial_images = Math.min(PARTIAL, Math.floor(PARTIAL_ALL / n));
  const body = { model: message.model, prompt: said.content, n, cfg, seed, stream: true, partial_images };
  const begun = performance.now();
  const usage = { prompt_tokens: 0, completion_tokens: 0, cost: 0 };
  const came = () => {
    running.note = "";
    tell({ type: "part", message });
    emit("part", message);
  };
  const keeping = [];
  await draw(body, control.signal, {
    note: (text) => {
      running.note = text;
      emit("note", message);
    },
    progress: (codes, all) => {
      message.progress = codes / all;
      running.codes = all / n;
      came();
    },
    partial: ({ index, b64_json, codes }) => {
      running.partials[index] = { data: address(b64_json), part: codes / running.codes };
      came();
    },
    picture: ({ index, seed, b64_json, usage: own }) => {
      const id = newId();
      usage.prompt_tokens += own.input_tokens;
      usage.completion_tokens += own.output_tokens;
      usage.cost += Number(own.cost_exact) || 0;
      running.partials[index] = { data: address(b64_json), part: 1 };
      message.pictures = [...message.pictures, { id, index, seed }].sort((a, b) => a.index - b.index);
      const file = { id, data: address(b64_json), conversation: conversation.id };
      keeping.push(store.write(conversation.id, [message], [file]));
      came();
    },
  }).finally(() => Promise.all(keeping));
  message.progress = 1;
  message.usage = measured({ ...usage, cost_exact: usage.cost }, message.model, 0, performance.now() - begun);
}

function address(base64) {
  return `data:image/png;base64,${base64}`;
}

async function read(body, running) {
  const { message, control } = running;
  const begun = performance.now();
  let first = 0,
    usage = null,
    told = begun,
    kept = begun;
  const came = () => {
    const now = performance.now();
    if (!first) first = now;
    running.note = "";
    if (now - told > TELL_MS) {
      told = now;
      tell({ type: "part", message });
    }
    if (now - kept > KEEP_MS) {
      kept = now;
      store.write(message.conversation, [message]);
    }
    emit("part", message);
  };
  await stream(body, control.signal, {
    note: (text) => {
      running.note = text;
      emit("note", message);
    },
    thought: (text) => {
      message.reasoning += text;
      came();
    },
    text: (text) => {
      if (message.reasoning && !message.content) message.thought_ms = Math.round(performance.now() - begun);
      message.content += text;
      came();
    },
    reason: (reason) => {
      if (reason === "length") message.status = "cut";
    },
    usage: (found) => {
      usage = found;
    },
  });
  if (usage) message.usage = measured(usage, message.model, first - begun, performance.now() - first);
}

function measured(usage, model, first_ms, run_ms) {
  const completion = usage.completion_tokens;
  const currency = state.models.find(({ id }) => id === model)?.pricing?.currency ?? "";
  const rate = completion > 1 && run_ms > 0 ? ((completion - 1) * 1000) / run_ms : 0;
  return {
    prompt: usage.prompt_tokens,
    completion,
    cached: usage.prompt_cache_hit_tokens ?? 0,
    thought: usage.completion_tokens_details?.reasoning_tokens ?? 0,
    cost: Number(usage.cost_exact ?? 0) || 0,
    currency,
    rate,
    first_ms: Math.max(0, first_ms),
  };
}

/** Ends all answers of a conversation, which is being deleted. */
export function discard(conversation) {
  for (const { message, control } of state.answers.values()) {
    if (message.conversation === conversation.id) control.abort();
  }
}

// ---- other tabs

on("tab", (data) => {
  if (data.type === "part" || data.type === "ended") partOfOther(data);
  if (data.type === "stop") state.answers.get(data.id)?.control.abort();
  if (data.type === "who" && state.answers.has(data.id)) {
    tell({ type: "part", message: state.answers.get(data.id).message });
  }
});

function partOfOther({ type, message }) {
  if (type === "part") heard.set(message.id, { at: Date.now(), conversation: message.conversation });
  else heard.delete(message.id);
  const known = state.messages.get(message.id);
  if (!known) return emit("list");
  Object.assign(known, message);
  emit(type === "part" ? "part" : "log", known);
}

/** Finds out whether somebody still reads the answers that are shown as coming. */
export function checkOthers() {
  for (const message of state.messages.values()) {
    if (!isRunning(message) || state.answers.has(message.id)) continue;
    const last = heard.get(message.id) ?? { at: Date.now(), conversation: message.conversation };
    heard.set(message.id, last);
    if (Date.now() - last.at > SILENCE_MS) orphaned(message);
    else tell({ type: "who", id: message.id });
  }
}

function orphaned(message) {
  heard.delete(message.id);
  const text = "The page that was reading this answer was closed.";
  Object.assign(message, { status: "failed", error: { kind: "broken", text } });
  if (isStored(state.current)) save(message);
  emit("log");
}

/** A page that is closed leaves what has come, and says that no more will. */
addEventListener("pagehide", () => {
  for (const { message } of state.answers.values()) {
    const text = "The page was closed while this answer was coming.";
    const left = { ...message, status: "failed", error: { kind: "broken", text } };
    tell({ type: "ended", message: left });
    store.write(message.conversation, [left]);
  }
});
