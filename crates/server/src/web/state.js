// What this tab knows: conversations, the one that is open with its messages, models. Changes go to the store and to
// other tabs, and are told to the views as events.

import { newId } from "./dom.js";
import { settings } from "./settings.js";
import * as store from "./store.js";
import { selecting } from "./tree.js";

export const state = {
  conversations: new Map(), // by id, without those that are being deleted
  current: null, // a conversation, which is in the store once something was said
  messages: new Map(), // the open conversation's, by id
  answers: new Map(), // that this tab reads from the server, of all conversations: `{message, control, note}` by id
  models: [],
  connected: "trying", // or "yes", "key" (it asks for one), "no"
  keyless: false, // the server takes requests without a key
};

const events = new EventTarget();
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("wels") : null;

/** Events: `list`, `log`, `connection`, `open`, and `tab` with what another tab has sent. */
export function on(name, action) {
  events.addEventListener(name, (event) => action(event.detail));
}

export function emit(name, detail) {
  events.dispatchEvent(new CustomEvent(name, { detail }));
}

/** Tells other tabs. */
export function tell(message) {
  channel?.postMessage(message);
}

if (channel) channel.onmessage = ({ data }) => emit("tab", data);

/** A conversation in which nothing has been said. */
export function fresh() {
  const now = Date.now();
  const choices = { model: "", system: settings.system, thinking: "" };
  return { id: newId(), title: "", ...choices, selected: {}, created: now, updated: now };
}

/** Reads all conversations. */
export async function load() {
  const found = await store.all("conversations");
  const kept = found.filter((conversation) => !conversation.deleted).sort((a, b) => b.updated - a.updated);
  state.conversations = new Map(kept.map((conversation) => [conversation.id, conversation]));
  return found;
}

/** What this tab has begun to write, and what of it has ended. */
let begun = 0,
  ended = 0;

async function writing(work) {
  begun++;
  try {
    return await work();
  } finally {
    ended++;
  }
}

/** The messages of a conversation in the store, at a moment at which this tab was writing none. */
async function stored(id) {
  for (;;) {
    const before = begun;
    const messages = await store.all("messages", id);
    if (before === begun && begun === ended) return messages;
  }
}

/** Opens a conversation by its name, or a new one. */
export async function open(id) {
  const conversation = state.conversations.get(id) ?? fresh();
  const messages = id && state.conversations.has(id) ? await stored(id) : [];
  state.current = conversation;
  state.messages = newest(messages);
  emit("open");
}

export function isStored(conversation) {
  return state.conversations.has(conversation.id);
}

/** Changes fields of a conversation, here, in the store and in other tabs. */
export async function change(conversation, fields) {
  const here = { ...conversation, ...fields, selected: { ...conversation.selected, ...fields.selected } };
  Object.assign(conversation, here);
  if (isStored(conversation)) {
    await store.change(conversation.id, fields);
    tell({ type: "changed", id: conversation.id });
  }
  emit("list");
  if (conversation === state.current) emit("log");
}

/** Adds messages with files, and the conversation with its first; the last of them becomes what is shown. */
export async function add(conversation, messages, files = []) {
  const last = messages.at(-1);
  const open = conversation === state.current;
  const known = open ? state.messages : newest(await stored(conversation.id));
  for (const message of messages) known.set(message.id, message);
  const fields = { updated: Date.now(), model: conversation.model, selected: selecting(last.id, known) };
  Object.assign(conversation, fields, { selected: { ...conversation.selected, ...fields.selected } });
  const isNew = !isStored(conversation);
  if (isNew) state.conversations.set(conversation.id, conversation);
  await writing(async () => {
    if (isNew) await store.add({ ...conversation });
    await store.change(conversation.id, fields);
    await store.write(conversation.id, messages, files);
  });
  sort();
  tell({ type: "changed", id: conversation.id });
  emit("list");
  if (open) emit("log");
}

/** Writes a message as it is now. */
export async function save(message) {
  await writing(() => store.write(message.conversation, [message]));
  tell({ type: "changed", id: message.conversation });
}

export async function removeMessage(message) {
  state.messages.delete(message.id);
  await writing(() => store.removeMessage(message.id));
  tell({ type: "changed", id: message.conversation });
}

/** Takes a conversation from the lists; it is gone for good once [purge] has been called. */
export async function hide(conversation) {
  state.conversations.delete(conversation.id);
  await store.change(conversation.id, { deleted: Date.now() });
  tell({ type: "changed", id: conversation.id });
  emit("list");
}

export async function unhide(id) {
  await store.change(id, { deleted: undefined });
  tell({ type: "changed", id });
  await refresh(id);
}

export async function purge(id) {
  const found = await store.get("conversations", id);
  if (found?.deleted) await store.remove(id);
}

/** Reads again what another tab has changed. */
export async function refresh(id) {
  const found = await store.get("conversations", id);
  if (!found || found.deleted) {
    state.conversations.delete(id);
    if (state.current?.id === id) await open(null);
  } else {
    merge(found);
    if (state.current?.id === id) await reread(id);
  }
  sort();
  emit("list");
}

function merge(found) {
  const known = state.conversations.get(found.id) ?? (state.current?.id === found.id ? state.current : null);
  // Which versions are looked at is each tab's own choice.
  const selected = { ...found.selected, ...known?.selected };
  if (known) Object.assign(known, found, { selected });
  state.conversations.set(found.id, known ?? found);
}

async function reread(id) {
  const messages = await stored(id);
  if (state.current.id !== id) return;
  state.messages = newest(messages);
  emit("log");
}

/** Messages by id. What this tab is writing, or has just heard of, is newer here than in the store. */
function newest(messages) {
  return new Map(
    messages.map((message) => {
      const known = message.status === "running" ? state.messages.get(message.id) : null;
      return [message.id, state.answers.get(message.id)?.message ?? known ?? message];
    }),
  );
}

function sort() {
  const sorted = [...state.conversations.values()].sort((a, b) => b.updated - a.updated);
  state.conversations = new Map(sorted.map((conversation) => [conversation.id, conversation]));
}

/** The models that see and draw pictures. */
export function imageModels() {
  return state.models.filter(({ images }) => images);
}

/** The model that draws in a conversation: its own where that draws. */
export function drawerOf(conversation) {
  const drawers = imageModels();
  const known = (id) => drawers.some((model) => model.id === id);
  return [conversation.drawer, conversation.model, settings.model].find(known) ?? drawers[0]?.id ?? "";
}

/** The model that a conversation is answered by. */
export function modelOf(conversation) {
  const known = (id) => state.models.some((model) => model.id === id);
  return [conversation.model, settings.model].find(known) ?? state.models[0]?.id ?? conversation.model;
}
