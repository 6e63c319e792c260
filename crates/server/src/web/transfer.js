// Conversations as files: our JSON out and in, Markdown out, ChatGPT's export in.

import { download, newId } from "./dom.js";
import { isPicture } from "./files.js";
import { load, emit, state, tell } from "./state.js";
import * as store from "./store.js";
import { ROOT, path, titleOf } from "./tree.js";

const FORMAT = "wels-chat";

/** Gives conversations as one file, or all where none are named. */
export async function exportJson(conversations) {
  const chosen = conversations ?? [...state.conversations.values()];
  const all = [];
  for (const conversation of chosen) {
    const { unseen, deleted, ...kept } = conversation;
    const [messages, files] = [await store.all("messages", conversation.id), await store.all("files", conversation.id)];
    all.push({ ...kept, messages: messages.map(({ conversation: of, ...message }) => message), files });
  }
  const text = JSON.stringify({ format: FORMAT, version: 1, conversations: all }, null, 1);
  const name = chosen.length === 1 ? fileName(chosen[0]) : `conversations-${new Date().toISOString().slice(0, 10)}`;
  download(`${name}.json`, "application/json", text);
}

/** Gives what is shown of a conversation as Markdown. */
export async function conversationMarkdown(conversation) {
  const messages = await store.all("messages", conversation.id);
  const shown = path(conversation.selected, new Map(messages.map((message) => [message.id, message])));
  const parts = [`# ${conversation.title}`];
  if (conversation.system.trim()) parts.push(`## System\n\n${conversation.system.trim()}`);
  for (const { message } of shown) {
    parts.push(`## ${message.role === "user" ? "You" : message.model || "Answer"}`, message.content.trim());
    for (const file of message.files ?? []) parts.push(isPicture(file) ? `*Picture: ${file.name}*` : fileBlock(file));
    for (const { seed } of message.pictures ?? []) parts.push(`*Drawn picture, seed ${seed}*`);
  }
  download(`${fileName(conversation)}.md`, "text/markdown", `${parts.filter(Boolean).join("\n\n")}\n`);
}

function fileBlock({ name, text }) {
  const longest = Math.max(2, ...Array.from(text.matchAll(/`+/g), ([run]) => run.length));
  const fence = "`".repeat(longest + 1);
  return `*${name}*\n\n${fence}\n${text.replace(/\n$/, "")}\n${fence}`;
}

function fileName({ title }) {
  return (
    title
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .replace(/^-|-$/g, "")
      .slice(0, 60) || "conversation"
  );
}

/** Reads a file of conversations: how many were new or had new messages. Throws what is wrong with it. */
export async function importJson(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("This file is no JSON.");
  }
  const read =
    data?.format === FORMAT ? (data.conversations ?? []).map(ours) : Array.isArray(data) ? data.map(chatGpt) : null;
  if (!read) throw new Error("This file is neither an export of this page nor ChatGPT's conversations.json.");
  let added = 0;
  for (const { conversation, messages, files } of read) {
    if (messages.length && (await store.add(conversation, messages, files))) added++;
  }
  await load();
  for (const { conversation } of read) tell({ type: "changed", id: conversation.id });
  emit("list");
  return added;
}

const string = (value, otherwise = "") => (typeof value === "string" ? value : otherwise);
const number = (value, otherwise = 0) => (Number.isFinite(value) ? value : otherwise);

/** What is needed of a record of ours, and nothing else. */
function ours(found) {
  const conversation = {
    id: id(found.id),
    title: string(found.title, "Untitled"),
    model: string(found.model),
    system: string(found.system),
    thinking: string(found.thinking),
    drawer: string(found.drawer),
    draws: found.draws === true,
    selected: strings(found.selected),
    created: number(found.created, Date.now()),
    updated: number(found.updated, Date.now()),
  };
  const messages = (found.messages ?? [])
    .filter(({ role }) => role === "user" || role === "assistant")
    .map((message) => ({
      id: id(message.id),
      conversation: conversation.id,
      parent: string(message.parent, ROOT),
      role: message.role,
      content: string(message.content),
      created: number(message.created, Date.now()),
      ...(message.role === "user" ? asked(message) : answered(message)),
    }));
  const files = (found.files ?? [])
    .filter(({ data }) => /^data:image\/(png|jpeg|webp|gif);base64,/.test(data))
    .map((picture) => ({ id: id(picture.id), conversation: conversation.id, data: picture.data }));
  return { conversation, messages, files };
}

function asked({ files, draw }) {
  return { files: (files ?? []).map(file), ...(draw && { draw: drawing(draw) }) };
}

function drawing({ n, cfg, seed }) {
  return { n: Math.min(Math.max(1, number(n, 1)), 10), cfg: number(cfg, 5), ...(Number.isFinite(seed) && { seed }) };
}

function drawnPicture(picture, index) {
  return { id: id(picture.id), index: number(picture.index, index), seed: number(picture.seed) };
}

function answered({ reasoning, thought_ms, model, status, usage, error, drawing: drawn, pictures }) {
  const numbers = ["prompt", "completion", "cached", "thought", "cost", "rate", "first_ms"];
  return {
    reasoning: string(reasoning),
    model: string(model),
    ...(thought_ms && { thought_ms: number(thought_ms) }),
    ...(drawn && { drawing: drawing(drawn), pictures: (pictures ?? []).map(drawnPicture) }),
    status: ["done", "stopped", "cut", "failed"].includes(status) ? status : "done",
    ...(error && { error: { kind: string(error.kind), text: string(error.text) } }),
    ...(usage && {
      usage: {
        ...Object.fromEntries(numbers.map((name) => [name, number(usage[name])])),
        currency: string(usage.currency),
      },
    }),
  };
}

function file({ id: name_of_record, name, type, size, text }) {
  const about = { id: id(name_of_record), name: string(name), type: string(type), size: number(size) };
  return typeof text === "string" ? { ...about, text } : about;
}

function id(value) {
  return typeof value === "string" && /^[\w.:-]{1,100}$/.test(value) ? value : newId();
}

function strings(value) {
  return Object.fromEntries(Object.entries(value ?? {}).filter(([, text]) => typeof text === "string"));
}

/** A conversation of ChatGPT's export: `mapping` is a tree as ours is, with messages that are not shown in it. */
function chatGpt({ id: name, conversation_id, title, create_time, update_time, mapping = {}, current_node }) {
  const conversation = {
    id: id(conversation_id ?? name),
    title: string(title) || "Untitled",
    model: "",
    system: "",
    thinking: "",
    selected: {},
    created: number(create_time) * 1000 || Date.now(),
    updated: number(update_time) * 1000 || Date.now(),
  };
  const messages = [];
  for (const [key, entry] of Object.entries(mapping)) {
    const content = said(entry);
    if (!content) continue;
    const role = entry.message.author.role;
    messages.push({
      id: key,
      conversation: conversation.id,
      parent: above(mapping, entry.parent),
      role,
      content,
      created: number(entry.message.create_time) * 1000 || conversation.created,
      ...(role === "assistant" && { reasoning: "", status: "done", model: string(entry.message.metadata?.model_slug) }),
    });
  }
  const byId = new Map(messages.map((message) => [message.id, message]));
  for (let at = current_node, left = messages.length; at && left >= 0; at = mapping[at]?.parent) {
    if (byId.has(at)) {
      conversation.selected[byId.get(at).parent] = at;
      left--;
    }
  }
  if (!title) conversation.title = titleOf(messages[0]?.content ?? "") || "Untitled";
  return { conversation, messages, files: [] };
}

/** The text of a message that people saw, or "". */
function said(entry) {
  const message = entry?.message;
  if (!["user", "assistant"].includes(message?.author?.role)) return "";
  if (message.metadata?.is_visually_hidden_from_conversation) return "";
  const { content_type, parts = [] } = message.content ?? {};
  if (content_type !== "text" && content_type !== "multimodal_text") return "";
  return parts
    .filter((part) => typeof part === "string")
    .join("\n")
    .trim();
}

/** The nearest message above that is kept. */
function above(mapping, parent) {
  for (let at = parent, left = 1000; at && left > 0; at = mapping[at]?.parent, left--) if (said(mapping[at])) return at;
  return ROOT;
}
