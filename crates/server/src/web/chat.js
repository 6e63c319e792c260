// The page: conversations, kept in this browser; one request at a time; settings.

import { render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const KEYS = { conversations: "wels.conversations", settings: "wels.settings", current: "wels.current" };

function load(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function store(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    say("The browser has no room to keep this conversation.");
  }
}

const settings = { key: "", model: "", system: "", temperature: "0.6", top_p: "0.95", max_tokens: "", seed: "", theme: "auto", ...load(KEYS.settings, {}) };
let conversations = load(KEYS.conversations, []);
let current = conversations.find((c) => c.id === load(KEYS.current, "")) ?? null;
let models = [];
let running = null;

// The key comes in the part of the address that browsers do not send.
if (location.hash.startsWith("#key=")) {
  const key = decoded(location.hash.slice(5)).trim();
  history.replaceState(null, "", location.pathname);
  // A link from somebody else must not make this browser talk with that one's key.
  const asks = settings.key && settings.key !== key;
  if (key && (!asks || confirm("This address brings another API key. Replace the one that is stored here?"))) {
    settings.key = key;
    store(KEYS.settings, settings);
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return ""; // "%" alone is no key
  }
}

function node(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function button(label, action, className = "plain") {
  const made = node("button", className, label);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

function say(text) {
  $("state").textContent = text;
}

async function api(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { Authorization: `Bearer ${settings.key}`, ...options.headers } });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  const error = new Error((body?.error?.message ?? `The server answered ${response.status}.`) + (wait ? ` Try again in ${wait} s.` : ""));
  error.status = response.status;
  throw error;
}

async function connect() {
  if (!settings.key) return openSettings();
  try {
    models = (await (await api("v1/models")).json()).data;
    say("");
  } catch (error) {
    say(error.message);
    if (error.status === 401) openSettings();
    return;
  }
  if (!models.some((model) => model.id === settings.model)) settings.model = models[0]?.id ?? "";
  $("model").textContent = settings.model;
  showBalance();
}

async function showBalance() {
  try {
    const { balance_infos: [info] } = await (await api("user/balance")).json();
    $("balance").textContent = info ? `${Number(info.total_balance).toFixed(4)} ${info.currency} left` : "";
  } catch {
    $("balance").textContent = "";
  }
}

// ---- conversations

function save() {
  if (current && !conversations.includes(current)) conversations.unshift(current);
  store(KEYS.conversations, conversations);
  store(KEYS.current, current?.id ?? "");
}

function select(conversation) {
  stop();
  current = conversation;
  store(KEYS.current, current?.id ?? "");
  document.body.classList.remove("side");
  $("shade").hidden = true;
  drawAll();
  $("input").focus();
}

function remove(conversation) {
  if (!confirm(`Delete “${conversation.title}”?`)) return;
  conversations = conversations.filter((other) => other !== conversation);
  store(KEYS.conversations, conversations);
  if (current === conversation) select(conversations[0] ?? null);
  else drawList();
}

function drawList() {
  const items = conversations.map((conversation) => {
    const open = button(conversation.title, () => select(conversation), "");
    const erase = button("✕", () => remove(conversation), "delete");
    erase.setAttribute("aria-label", `Delete ${conversation.title}`);
    const item = node("li", "", open, erase);
    if (conversation === current) item.setAttribute("aria-current", "true");
    return item;
  });
  $("list").replaceChildren(...items);
  $("title").textContent = current?.title ?? "New conversation";
}

function drawAll() {
  drawList();
  $("log").replaceChildren(...(current?.messages ?? []).map(draw));
  $("empty").hidden = Boolean(current?.messages.length);
  bottom(true);
}

function draw(message, index) {
  return message.role === "user" ? drawUser(message, index) : drawAnswer(message, index);
}

function drawUser(message, index) {
  const text = node("div", "text", message.content);
  const tools = node("div", "tools", button("Edit", () => edit(message, index)), button("Copy", () => copy(message.content)));
  const article = node("article", "message user", text, tools);
  article.setAttribute("aria-label", "You");
  return article;
}

function edit(message, index) {
  const area = node("textarea");
  area.value = message.content;
  area.setAttribute("aria-label", "Edit the message");
  const done = () => {
    if (!area.value.trim()) return;
    stop();
    current.messages.length = index;
    send(area.value.trim());
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); drawAll(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
  });
  $("log").children[index].replaceChildren(area, node("div", "tools", button("Send", done), button("Cancel", drawAll)));
  area.focus();
}

function drawAnswer(message, index) {
  const article = node("article", "message assistant");
  article.setAttribute("aria-label", "Answer");
  fill(article, message, index);
  return article;
}

function fill(article, message, index) {
  const live = running?.message === message;
  const parts = [];
  if (message.reasoning) {
    const old = article.querySelector("details");
    const seconds = message.thought_ms ? ` for ${Math.max(1, Math.round(message.thought_ms / 1000))} s` : "";
    const thinking = live && !message.content;
    const body = node("div", "body md", render(message.reasoning));
    const details = node("details", "think", node("summary", "", thinking ? "Thinking…" : `Thought${seconds}`), body);
    details.open = old ? old.open : false;
    parts.push(details);
  }
  if (message.content) parts.push(node("div", "md", render(message.content)));
  if (message.error) parts.push(node("div", "error", message.error));
  if (live) {
    if (!message.content) parts.push(node("div", "waiting"));
  } else {
    const numbers = node("span", "numbers", message.numbers ?? "");
    parts.push(node("div", "tools", button("Copy", () => copy(message.content)), button("Retry", () => retry(index)), numbers));
  }
  article.replaceChildren(...parts);
}

async function copy(text) {
  await navigator.clipboard.writeText(text).then(() => say("Copied."), () => say("The browser does not allow copying."));
}

function retry(index) {
  stop();
  current.messages.length = index;
  answer();
}

// Stays at the end while the reader is there.
let follows = true;
$("scroll").addEventListener("scroll", () => {
  const box = $("scroll");
  follows = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
});
function bottom(force) {
  if (force || follows) $("scroll").scrollTop = $("scroll").scrollHeight;
}

// ---- asking

function send(text) {
  if (!current) current = { id: crypto.randomUUID?.() ?? String(Date.now()), title: "", messages: [] };
  if (!current.title) current.title = text.split("\n")[0].slice(0, 60);
  current.messages.push({ role: "user", content: text });
  answer();
}

function body() {
  const number = (text) => (text === "" ? undefined : Number(text));
  const messages = current.messages.filter((m) => !m.error || m.content).map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  return {
    model: settings.model, messages, stream: true, stream_options: { include_usage: true },
    temperature: number(settings.temperature), top_p: number(settings.top_p),
    max_tokens: number(settings.max_tokens), seed: number(settings.seed),
  };
}

async function answer() {
  const request = JSON.stringify(body());
  const message = { role: "assistant", content: "", reasoning: "" };
  const conversation = current;
  const index = conversation.messages.push(message) - 1;
  const control = new AbortController();
  running = { message, control };
  $("send").firstElementChild.textContent = "■";
  $("send").setAttribute("aria-label", "Stop");
  follows = true;
  save();
  drawAll();
  const article = $("log").children[index];
  const redraw = eachFrame(() => { if (article.isConnected) { fill(article, message, index); bottom(); } });
  try {
    const response = await api("v1/chat/completions", { method: "POST", body: request, headers: { "Content-Type": "application/json" }, signal: control.signal });
    await read(response, message, redraw);
  } catch (error) {
    if (error.name !== "AbortError") message.error = error.message;
    else if (!message.content && !message.reasoning) message.error = "Stopped.";
  }
  running = null;
  $("send").firstElementChild.textContent = "↑";
  $("send").setAttribute("aria-label", "Send");
  say(message.error ? "" : "The answer is complete.");
  save();
  if (conversation === current) { fill(article, message, index); bottom(); drawList(); }
  if (!models.length) connect(); else showBalance();
  grow();
}

function eachFrame(work) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; work(); });
  };
}

async function read(response, message, redraw) {
  const begun = performance.now();
  let first = 0, usage = null, rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part; !(part = await reader.read()).done; ) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith(": waiting")) say(line.slice(2));
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      if (!choice) continue;
      if (!first) { first = performance.now(); say(""); }
      message.reasoning += choice.delta.reasoning_content ?? "";
      if (message.reasoning && choice.delta.content && !message.content) message.thought_ms = performance.now() - begun;
      message.content += choice.delta.content ?? "";
      if (choice.finish_reason === "length") message.error = "The answer was cut off at its greatest length.";
      redraw();
    }
  }
  if (usage) message.numbers = numbers(usage, first - begun, performance.now() - first);
}

function numbers(usage, wait_ms, run_ms) {
  const parts = [`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`];
  if (usage.completion_tokens > 1 && run_ms > 0) parts.push(`${(((usage.completion_tokens - 1) * 1000) / run_ms).toFixed(1)} tokens/s`);
  if (wait_ms > 0) parts.push(`first after ${(wait_ms / 1000).toFixed(wait_ms < 1000 ? 2 : 1)} s`);
  const currency = models[0]?.pricing?.currency ?? "";
  if (Number(usage.cost_exact) > 0) parts.push(`${Number(usage.cost_exact).toPrecision(2)} ${currency}`);
  return parts.join(" · ");
}

function stop() {
  running?.control.abort();
}

// ---- the composer

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  $("send").disabled = !running && !input.value.trim();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return stop();
  const text = $("input").value.trim();
  if (!text) return;
  if (!settings.key) return openSettings();
  $("input").value = "";
  send(text);
  grow();
});
$("input").addEventListener("input", grow);
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !running) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !$("settings").open) stop();
  if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) { event.preventDefault(); select(null); }
});

// ---- the sides

const side = (open) => {
  document.body.classList.toggle("side", open);
  $("shade").hidden = !open;
  if (open) $("close-side").focus();
};
$("open-side").addEventListener("click", () => side(true));
$("close-side").addEventListener("click", () => { side(false); $("open-side").focus(); });
$("shade").addEventListener("click", () => side(false));
$("new").addEventListener("click", () => select(null));

const FIELDS = ["key", "system", "temperature", "top_p", "max_tokens", "seed", "theme"];

function openSettings() {
  for (const name of FIELDS) $(`s-${name}`).value = settings[name];
  $("s-model").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === settings.model)));
  if (!$("settings").open) $("settings").showModal();
}
$("open-settings").addEventListener("click", openSettings);
$("settings").addEventListener("close", () => {
  for (const name of FIELDS) settings[name] = name === "key" ? $("s-key").value.trim() : $(`s-${name}`).value;
  settings.model = $("s-model").value || settings.model;
  store(KEYS.settings, settings);
  dress();
  if (settings.key) connect();
});

function dress() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

dress();
drawAll();
grow();
connect();
