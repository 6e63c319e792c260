// The messages of the open conversation.

import { again, isRunning, send, stop } from "./answers.js";
import { $, button, copy, icon, iconButton, imageNode, node } from "./dom.js";
import { DrawingView, described } from "./drawing.js";
import { isPicture, size } from "./files.js";
import { code } from "./markdown.js";
import { Growing } from "./render.js";
import { emit, on, state } from "./state.js";
import * as store from "./store.js";
import { path } from "./tree.js";
import { View, notices, numbers, span } from "./view.js";

/** By the message's id, in the order of the page. */
let views = new Map();
let editing = null;
let follows = true;

/** Shows the open conversation. */
export function drawLog() {
  const shown = path(state.current.selected, state.messages);
  const old = views;
  views = new Map();
  for (const item of shown) {
    const view = old.get(item.message.id) ?? viewOf(item.message);
    views.set(item.message.id, view);
    view.update(item);
  }
  const articles = [...views.values()].map(({ article }) => article);
  const there = [...$("log").children];
  if (articles.length !== there.length || articles.some((article, at) => article !== there[at])) {
    $("log").replaceChildren(...articles);
  }
  document.body.classList.toggle("blank", shown.length === 0);
  bottom();
}

/** The last message that is shown. */
export function lastMessage() {
  return path(state.current.selected, state.messages).at(-1)?.message ?? null;
}

export function lastOf(role) {
  return path(state.current.selected, state.messages).findLast(({ message }) => message.role === role)?.message ?? null;
}

function viewOf(message) {
  if (message.role === "user") return new UserView(message);
  return message.drawing ? new DrawingView(message, retry, editSaid) : new AnswerView(message);
}

class UserView extends View {
  constructor(message) {
    super(message, "You");
    this.fill();
  }

  fill() {
    const { content, files = [], draw } = this.message;
    const parts = files.length ? [node("div", "files", ...files.map(fileShown))] : [];
    if (draw) parts.push(node("p", "asked quiet", icon("brush"), described(draw)));
    if (content) parts.push(node("div", "text", content));
    this.article.replaceChildren(...parts, this.tools);
  }

  makeTools() {
    return [iconButton("copy", "Copy", () => copy(this.message.content)), iconButton("edit", "Edit", () => edit(this))];
  }
}

function fileShown(file) {
  if (!isPicture(file)) {
    const shown = node(
      "details",
      "file",
      node("summary", "", icon("file"), node("span", "name", file.name), node("span", "quiet", size(file.size))),
    );
    shown.addEventListener("toggle", () => {
      if (shown.open && shown.children.length === 1)
        shown.append(code(file.text, /\.(\w+)$/.exec(file.name)?.[1] ?? ""));
    });
    return shown;
  }
  const image = imageNode("picture");
  image.alt = file.name;
  load(image, file.id);
  return image;
}

/** Shows a kept picture; one that was just sent may not be kept yet. */
async function load(image, id, tries = 20) {
  const found = await store.get("files", id);
  if (found) image.src = found.data;
  else if (tries) setTimeout(() => load(image, id, tries - 1), 250);
}

/** Changes what was said: it becomes another version, and is answered. */
function edit(view) {
  const { message } = view;
  const area = node("textarea");
  area.value = message.content;
  area.setAttribute("aria-label", "Edit the message");
  const away = () => {
    editing = null;
    view.fill();
    view.tools.querySelector("[aria-label=Edit]")?.focus();
  };
  const done = async () => {
    if (!area.value.trim() && (message.draw || !message.files?.length)) return;
    const files = await Promise.all((message.files ?? []).map(copied));
    away();
    jump();
    send(state.current, message.parent, area.value.trim(), files, message.draw);
  };
  area.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      away();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
  });
  const row = node("div", "row", button("Cancel", away), button("Send", done, "primary"));
  view.article.replaceChildren(node("div", "editor", area, row));
  editing = message.id;
  area.style.height = `${Math.min(area.scrollHeight + 4, innerHeight / 2)}px`;
  area.focus();
}

/** A file as if it had been read again; the new version has pictures of its own. */
async function copied(file) {
  if (!isPicture(file)) return file;
  const found = await store.get("files", file.id);
  return { ...file, id: `${file.id}.${Date.now()}`, data: found?.data };
}

/** Edits what an answer is the answer to. */
function editSaid(answer) {
  const said = views.get(answer.parent);
  if (said) edit(said);
}

/** Edits what was said last. */
export function editLast() {
  const message = lastOf("user");
  if (message) edit(views.get(message.id));
}

class AnswerView extends View {
  constructor(message) {
    super(message, "Answer");
    this.thought = node("div", "body md");
    this.summary = node("summary");
    this.think = node("details", "think", this.summary, this.thought);
    this.text = node("div", "md text");
    this.waiting = node("div", "waiting");
    this.notice = node("div", "notices");
    this.article.append(this.think, this.text, this.waiting, this.notice, this.tools);
    this.grows = { text: new Growing(this.text), thought: new Growing(this.thought) };
    this.think.addEventListener("toggle", () => this.draw());
  }

  update(item) {
    super.update(item);
    this.draw();
  }

  /** Shows what has come so far. */
  draw() {
    const { message } = this;
    const live = isRunning(message);
    this.think.hidden = !message.reasoning;
    this.text.hidden = !message.content;
    this.waiting.hidden = !live || Boolean(message.content);
    this.article.setAttribute("aria-busy", String(live));
    this.summary.textContent = thinking(message, live);
    // What is folded away is not made until it is looked at.
    if (message.reasoning && this.think.open) this.show("thought", message.reasoning, live && !message.content);
    if (message.content) this.show("text", message.content, live);
  }

  show(part, text, live) {
    const final = `${part} ${text.length}`;
    if (live) return this.grows[part].update(text);
    if (this[part].dataset.final === final) return;
    this[part].dataset.final = final;
    this.grows[part].finish(text);
  }

  makeTools() {
    const { message } = this;
    if (isRunning(message)) return [];
    const { usage } = message;
    const tools = message.status === "failed" ? [] : [iconButton("again", "Answer again", () => retry(message))];
    if (message.content) tools.unshift(iconButton("copy", "Copy", () => copy(message.content)));
    if (usage) tools.push(node("span", "numbers", numbers(usage)));
    return tools;
  }

  after() {
    this.notice.replaceChildren(...notices(this.message, retry, withoutPictures));
  }
}

function thinking({ reasoning, thought_ms, content, created }, live) {
  if (!reasoning) return "";
  if (live && !content) return `Thinking for ${span(Date.now() - created)}…`;
  return thought_ms ? `Thought for ${span(thought_ms)}` : "Thought";
}

function withoutPictures(message) {
  const files = message.files.filter((file) => !isPicture(file));
  const content = message.content || (files.length ? "" : "(A picture was here.)");
  send(state.current, message.parent, content, files);
}

function retry(message) {
  jump();
  again(state.current, message);
}

// ---- while answers come

const asked = new Set();

function soon(message) {
  if (asked.has(message.id)) return;
  asked.add(message.id);
  requestAnimationFrame(() => {
    asked.delete(message.id);
    const view = views.get(message.id);
    if (!view || !isRunning(message)) return;
    view.message = message;
    view.draw();
    bottom();
    // What was left out for lack of time is shown a little later, also if nothing more comes.
    clearTimeout(view.later);
    view.later = setTimeout(() => soon(message), 200);
  });
}

on("part", (message) => {
  if (views.has(message.id)) soon(message);
});
on("log", () => {
  if (!editing || !views.has(editing)) drawLog();
  else drawLogAround();
});
on("open", () => {
  views = new Map();
  editing = null;
  follows = true;
  drawLog();
  bottom(true);
});

/** While a message is being edited its article stays as it is. */
function drawLogAround() {
  const shown = path(state.current.selected, state.messages);
  if (shown.some(({ message }) => message.id === editing)) return;
  editing = null;
  drawLog();
}

/** Stays at the end while the reader is there. */
export function bottom(force) {
  const box = $("scroll");
  const blank = document.body.classList.contains("blank");
  if (force || follows) box.scrollTop = blank ? 0 : box.scrollHeight;
  $("to-end").hidden = blank || follows || box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}

export function jump() {
  follows = true;
  bottom(true);
}

/** Scrolls to a message and marks it for a moment. */
export function show(id) {
  const view = views.get(id);
  if (!view) return;
  follows = false;
  view.article.scrollIntoView({ block: "start" });
  view.article.classList.add("found");
  setTimeout(() => view.article.classList.remove("found"), 2500);
}

export function startLog() {
  $("scroll").addEventListener(
    "scroll",
    () => {
      const box = $("scroll");
      follows = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
      $("to-end").hidden = follows;
    },
    { passive: true },
  );
  $("to-end").addEventListener("click", jump);
  new ResizeObserver(() => bottom()).observe($("scroll"));
}

/** Stops the answer that is coming in the open conversation; whether there was one. */
export function stopHere() {
  const message = lastMessage();
  if (!isRunning(message)) return false;
  stop(message);
  return true;
}
