// The list of conversations: groups by day, search, a menu for each, deletion with a way back.

import { discard, runningIn } from "./answers.js";
import { $, button, iconButton, node, toast } from "./dom.js";
import { openMenu } from "./menu.js";
import { show } from "./log.js";
import { change, emit, hide, on, open, purge, state, unhide } from "./state.js";
import * as store from "./store.js";
import { selecting } from "./tree.js";
import { conversationMarkdown, exportJson } from "./transfer.js";

const UNDO_S = 10;
const RESULTS = 50;
let found = null; // by the search: `[{conversation, message, snippet}]`

export function startSidebar() {
  $("search").addEventListener("input", () => {
    clearTimeout(startSidebar.timer);
    startSidebar.timer = setTimeout(search, 120);
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("search").value) {
      event.stopPropagation();
      clearSearch();
    }
    if (event.key === "Enter" || event.key === "ArrowDown") {
      event.preventDefault();
      $("list").querySelector(".open")?.focus();
    }
  });
  $("new").addEventListener("click", () => go(null));
  $("open-side").addEventListener("click", () => side(true));
  $("close-side").addEventListener("click", () => {
    side(false);
    $("open-side").focus();
  });
  $("shade").addEventListener("click", () => side(false));
  on("list", drawList);
  on("open", drawList);
  on("part", markRunning);
}

function clearSearch() {
  $("search").value = "";
  found = null;
  drawList();
}

/** Opens the list on narrow windows, where it lies over the page. */
export function side(opened) {
  const narrow = getComputedStyle($("open-side")).display !== "none";
  document.body.classList.toggle("side", opened && narrow);
  $("shade").hidden = !(opened && narrow);
  $("main").inert = opened && narrow;
  if (opened && narrow) $("close-side").focus();
}

/** Goes to a conversation, or to a new one; the address remembers it. */
export async function go(id, message) {
  const hash = id ? `#c=${id}` : "";
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname);
  side(false);
  await open(id);
  if (message) {
    await change(state.current, { selected: selecting(message, state.messages) });
    show(message);
  } else if (matchMedia("(hover: hover)").matches || !id) {
    $("input").focus();
  }
}

// ---- the list

export function drawList() {
  const scrolled = $("side-scroll").scrollTop;
  const focused = document.activeElement?.closest?.("#list li")?.dataset.id;
  $("list").replaceChildren(...(found ? results() : groups()));
  $("title").textContent = state.current.title || "New conversation";
  document.title = state.current.title ? `${state.current.title} – Wels` : "Wels";
  $("side-scroll").scrollTop = scrolled;
  if (focused)
    $("list")
      .querySelector(`li[data-id="${CSS.escape(focused)}"] .open`)
      ?.focus();
}

function groups() {
  const made = new Map();
  for (const conversation of state.conversations.values()) {
    const name = day(conversation.updated);
    made.set(name, [...(made.get(name) ?? []), item(conversation)]);
  }
  return [...made].map(([name, items]) => node("section", "", node("h2", "group", name), node("ul", "", ...items)));
}

function day(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const days = Math.ceil((midnight - time) / 86_400_000);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days <= 7) return "Last seven days";
  if (days <= 30) return "Last thirty days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

function item(conversation, message, snippet) {
  const open = button("", () => go(conversation.id, message), "open");
  open.append(node("span", "name", conversation.title || "Untitled"));
  if (snippet) open.append(node("span", "snippet", ...snippet));
  const more = iconButton("more", `More about ${conversation.title || "it"}`, () =>
    openMenu(more, actions(conversation)),
  );
  more.setAttribute("aria-haspopup", "menu");
  const made = node("li", "", open, more);
  made.dataset.id = conversation.id;
  if (conversation.id === state.current.id) open.setAttribute("aria-current", "page");
  mark(made, conversation);
  return made;
}

/** A mark for an answer that comes, or that has come and was not looked at. */
function mark(element, conversation) {
  const running = runningIn(conversation);
  const words = running ? "An answer is coming" : conversation.unseen ? "New answer" : "";
  const kind = running ? "running" : "unseen";
  const there = element.querySelector(".mark");
  if (there?.classList.contains(kind) && words) return;
  there?.remove();
  if (!words) return;
  const made = node("span", `mark ${kind}`);
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", words);
  made.title = words;
  element.querySelector(".open").prepend(made);
}

function markRunning(message) {
  const conversation = state.conversations.get(message.conversation);
  const element = conversation && $("list").querySelector(`li[data-id="${CSS.escape(conversation.id)}"]`);
  if (element) mark(element, conversation);
}

// ---- what can be done with a conversation

/** The items of its menu. */
export function actions(conversation) {
  return [
    ["edit", "Title and system prompt", () => emit("options", conversation)],
    ["download", "Export as Markdown", () => conversationMarkdown(conversation)],
    ["download", "Export as JSON", () => exportJson([conversation])],
    ["trash", "Delete", () => remove(conversation), "danger"],
  ];
}

/** Takes it away at once, and for good a little later. */
export async function remove(conversation) {
  const { id, title } = conversation;
  discard(conversation);
  await hide(conversation);
  if (state.current.id === id) await go(null);
  const timer = setTimeout(() => purge(id), UNDO_S * 1000);
  toast(
    `“${title || "Untitled"}” was deleted.`,
    "Undo",
    async () => {
      clearTimeout(timer);
      await unhide(id);
      go(id);
    },
    UNDO_S,
  );
}

// ---- search

async function search() {
  const words = $("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return clearSearch();
  const asked = $("search").value;
  const messages = await store.all("messages");
  if ($("search").value !== asked) return; // typed on meanwhile
  const titles = [...state.conversations.values()].filter(({ title }) => has(title, words));
  const said = messages
    .sort((a, b) => b.created - a.created)
    .filter((message) => state.conversations.has(message.conversation) && has(textOf(message), words));
  const lines = said.map((message) => ({
    conversation: state.conversations.get(message.conversation),
    message: message.id,
    snippet: snippet(textOf(message), words[0]),
  }));
  found = [...titles.map((conversation) => ({ conversation })), ...lines].slice(0, RESULTS);
  drawList();
}

function textOf(message) {
  return [message.content, ...(message.files ?? []).map(({ name }) => name)].join("\n");
}

function has(text, words) {
  const lower = text.toLowerCase();
  return words.every((word) => lower.includes(word));
}

function snippet(text, word) {
  const line = text.replace(/\s+/g, " ");
  const at = Math.max(0, line.toLowerCase().indexOf(word));
  const begin = at > 24 ? line.indexOf(" ", at - 24) + 1 : 0;
  const from = begin > at ? at : begin;
  return [
    `${from ? "…" : ""}${line.slice(from, at)}`,
    node("mark", "", line.slice(at, at + word.length)),
    line.slice(at + word.length, at + 80),
  ];
}

function results() {
  const count = found.length === 1 ? "1 result" : `${found.length} results`;
  const items = found.map(({ conversation, message, snippet: parts }) => item(conversation, message, parts));
  const head = node("h2", "group", found.length ? count : "Nothing found");
  head.setAttribute("role", "status");
  return [node("section", "", head, node("ul", "", ...items))];
}
