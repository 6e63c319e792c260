// The web chat of `wels serve`: where it begins. Conversations stay in this browser; answers come from this server.

import { checkOthers } from "./answers.js";
import { balance, models } from "./api.js";
import { startComposer, drawControls, drawState } from "./composer.js";
import { openKeys, openSettings, startDialogs } from "./dialogs.js";
import { $, ask, copy, say } from "./dom.js";
import { lastOf, startLog, stopHere } from "./log.js";
import { openMenu, startMenu } from "./menu.js";
import { dress, follow, keep, settings } from "./settings.js";
import { actions, drawList, go, side, startSidebar } from "./sidebar.js";
import { change, emit, load, on, open, purge, refresh, state } from "./state.js";
import * as store from "./store.js";
import { ROOT, titleOf } from "./tree.js";

const AGAIN_MS = 5000;
/** After which a deleted conversation is gone, if the page was closed before it could do that. */
const DELETED_MS = 60_000;

start();

async function start() {
  dress();
  startMenu();
  startLog();
  startComposer();
  startSidebar();
  startDialogs(connect);
  const hash = location.hash;
  const kept = await store.open();
  await migrate();
  const found = await load();
  found.filter(({ deleted }) => deleted && Date.now() - deleted > DELETED_MS).forEach(({ id }) => purge(id));
  await open(/^#c=/.test(hash) ? hash.slice(3) : null);
  wire();
  drawList();
  const offered = keyIn(hash);
  if (offered && !settings.key) keep({ key: offered });
  await connect();
  if (offered) await takeKey(offered);
  if (!kept) say("This browser keeps nothing, so conversations are gone when the page is closed.");
  if (matchMedia("(hover: hover)").matches) $("input").focus();
  document.documentElement.dataset.ready = "yes";
}

function wire() {
  on("tab", (data) => {
    if (data.type === "changed") refresh(data.id);
  });
  on("open", () => {
    say(""); // it was of another conversation
    seen();
  });
  on("ended", ended);
  on("erased", () => go(null));
  follow(() => {
    drawControls();
    connect();
  });
  addEventListener("popstate", () => open(/^#c=/.test(location.hash) ? location.hash.slice(3) : null));
  addEventListener("hashchange", () => {
    const key = keyIn(location.hash);
    if (key) takeKey(key);
  });
  addEventListener("online", connect);
  document.addEventListener("visibilitychange", () => {
    seen();
    if (state.connected === "no") connect();
  });
  document.addEventListener("keydown", shortcut);
  $("more").addEventListener("click", () => openMenu($("more"), actionsHere()));
  $("banner-again").addEventListener("click", connect);
  $("key-form").addEventListener("submit", enterKey);
  setInterval(checkOthers, 2000);
  checkOthers();
  offline();
}

function actionsHere() {
  const all = actions(state.current);
  return state.conversations.has(state.current.id) ? all : all.slice(0, 1);
}

/** What was new in the open conversation has been looked at. */
function seen() {
  if (state.current.unseen && document.visibilityState === "visible") change(state.current, { unseen: undefined });
}

function ended({ conversation, message }) {
  if (conversation === state.current) {
    const words = {
      done: message.drawing ? "The drawing is complete." : "The answer is complete.",
      cut: "The answer was cut off.",
      stopped: message.drawing ? "The drawing was stopped." : "The answer was stopped.",
    };
    say(words[message.status] ?? "");
  }
  if (message.error?.kind === "network" || message.error?.kind === "key") connect();
  else showBalance();
}

// ---- the key

/** The key in the part of the address that browsers do not send: it does not stay there. */
function keyIn(hash) {
  if (!hash.startsWith("#key=")) return "";
  history.replaceState(null, "", location.pathname);
  try {
    const key = decodeURIComponent(hash.slice(5)).trim();
    return key === "none" ? "" : key; // what a server without keys prints
  } catch {
    return ""; // "%" alone is no key
  }
}

/** A link from somebody else must not make this browser talk with that one's key. */
async function takeKey(key) {
  if (key === settings.key || state.keyless) return;
  const words = "The address of this page brings another API key than the one that is stored in this browser.";
  if (settings.key && !(await ask("Replace the stored key?", words, "Replace", "Keep mine"))) return;
  keep({ key });
  await connect();
}

async function enterKey(event) {
  event.preventDefault();
  const key = $("key-field").value.trim();
  if (!key) return;
  keep({ key });
  await connect();
  if (state.connected === "yes") {
    $("key-field").value = "";
    $("input").focus();
  } else $("key-field").select();
}

// ---- the server

let next = 0;

/** Asks the server for its models, which shows whether it is there and takes the key. */
async function connect() {
  clearTimeout(next);
  try {
    state.models = await models();
    connected("yes", "");
    state.keyless = !settings.key;
    showBalance();
  } catch (error) {
    if (error.kind === "key") return connected("key", settings.key ? error.message : "");
    connected("no", error.message);
    next = setTimeout(() => {
      if (document.visibilityState === "visible") connect();
    }, AGAIN_MS);
  }
}

function connected(how, words) {
  const before = state.connected;
  state.connected = how;
  $("banner").hidden = how !== "no";
  if (how === "no") $("banner-text").textContent = words;
  if (before === "no" && how === "yes") say("The server answers again.");
  document.body.classList.toggle("locked", how === "key");
  $("key-error").textContent = how === "key" ? words : "";
  emit("connection");
  drawState();
}

async function showBalance() {
  $("balance").textContent = await balance().catch(() => "");
}

// ---- keys

function shortcut(event) {
  const dialog = document.querySelector("dialog[open]");
  const ctrl = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (event.key === "Escape" && !dialog) {
    if (document.body.classList.contains("side")) side(false);
    else stopHere();
  }
  const action = dialog
    ? null
    : ctrl && event.shiftKey
      ? { o: () => go(null), l: copyLast }[key]
      : ctrl
        ? { k: find, u: () => $("pick").click(), ",": openSettings, "/": openKeys }[key]
        : event.altKey
          ? { arrowup: () => beside(-1), arrowdown: () => beside(1) }[key]
          : null;
  if (!action) return;
  event.preventDefault();
  action();
}

function find() {
  side(true);
  $("search").focus();
  $("search").select();
}

function copyLast() {
  const message = lastOf("assistant");
  if (message?.content) copy(message.content);
}

function beside(step) {
  const all = [...state.conversations.keys()];
  const at = all.indexOf(state.current.id);
  const id = all[at < 0 ? 0 : at + step];
  if (id) go(id);
}

// ---- what an earlier version has kept, and the page without a server

/** The conversations of the page before 2026-11-28, one list in localStorage. */
async function migrate() {
  const old = localStorage.getItem("wels.conversations");
  if (!old) return;
  try {
    for (const { id, title, messages } of JSON.parse(old)) await moved(id, title, messages);
  } catch {
    return; // it stays where it is
  }
  localStorage.removeItem("wels.conversations");
  localStorage.removeItem("wels.current");
}

async function moved(id, title, old) {
  const now = Date.now();
  const conversation = {
    id,
    title: title || titleOf(old[0]?.content ?? ""),
    model: "",
    system: settings.system,
    thinking: "",
    selected: {},
    created: now,
    updated: now,
  };
  const messages = old.map((message, at) => ({
    id: `${id}.${at}`,
    conversation: id,
    parent: at ? `${id}.${at - 1}` : ROOT,
    role: message.role,
    content: message.content ?? "",
    created: now + at,
    ...(message.role === "assistant" && {
      reasoning: message.reasoning ?? "",
      thought_ms: message.thought_ms,
      status: "done",
      model: "",
    }),
  }));
  await store.add(conversation, messages);
}

/** The page itself is kept for when the server is away, where browsers allow that: with TLS, and on this machine. */
function offline() {
  if (!("serviceWorker" in navigator) || !isSecureContext) return;
  const policy = globalThis.trustedTypes?.createPolicy("wels", {
    createScriptURL: (address) => (address === "sw.js" ? address : ""),
  });
  navigator.serviceWorker.register(policy ? policy.createScriptURL("sw.js") : "sw.js").catch(() => {});
}
