// Settings, what belongs to one conversation, and the list of keys.

import { $, ask, node, say, toast } from "./dom.js";
import { NUMBERS, keep, settings, wrong } from "./settings.js";
import { change, emit, isStored, on, purge, state } from "./state.js";
import * as store from "./store.js";
import { exportJson, importJson } from "./transfer.js";

const FIELDS = ["key", "system", "temperature", "top_p", "max_tokens", "seed", "theme"];
const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const CTRL = MAC ? "⌘" : "Ctrl";
/** What the list of keys shows; app.js does them. */
const KEYS = [
  ["Enter", "send"],
  ["Shift Enter", "begin a line"],
  ["Esc", "stop the answer"],
  ["↑", "edit what was said last, in an empty field"],
  [`${CTRL} Enter`, "send what is edited"],
  [`${CTRL} Shift O`, "new conversation"],
  [`${CTRL} K`, "search"],
  [`${CTRL} U`, "attach files"],
  [`${CTRL} Shift L`, "copy the last answer"],
  ["Alt ↑  Alt ↓", "conversation above, below"],
  [`${CTRL} ,`, "settings"],
  [`${CTRL} /`, "this list"],
];

export function startDialogs(reconnect) {
  $("open-settings").addEventListener("click", openSettings);
  $("settings-form").addEventListener("submit", (event) => saveSettings(event, reconnect));
  $("options-form").addEventListener("submit", saveOptions);
  $("export-all").addEventListener("click", () => exportJson());
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", importFile);
  $("erase").addEventListener("click", erase);
  $("open-keys").addEventListener("click", openKeys);
  $("show-key").addEventListener("click", showKey);
  for (const dialog of document.querySelectorAll("dialog"))
    dialog.addEventListener("click", (event) => beside(dialog, event));
  for (const made of document.querySelectorAll("[data-close]"))
    made.addEventListener("click", () => made.closest("dialog").close());
  on("settings", openSettings);
  on("options", openOptions);
}

/** A click beside a dialog closes it, without saving, unless something was typed. */
function beside(dialog, event) {
  if (event.target !== dialog || dialog.classList.contains("form")) return;
  dialog.close();
}

export function openSettings() {
  for (const name of FIELDS) $(`s-${name}`).value = settings[name];
  for (const name of Object.keys(NUMBERS)) complain(name, "");
  $("s-key").type = "password";
  const refused = state.connected === "key" && settings.key;
  $("key-state").className = refused ? "wrong" : "quiet";
  $("key-state").textContent = refused
    ? "The server does not take the key that is stored here."
    : state.keyless
      ? "This server needs no key."
      : "";
  if (!$("settings").open) $("settings").showModal();
  if (state.connected === "key") $("s-key").focus();
}

function showKey() {
  const hidden = $("s-key").type === "password";
  $("s-key").type = hidden ? "text" : "password";
  $("show-key").textContent = hidden ? "Hide" : "Show";
}

function complain(name, words) {
  $(`e-${name}`).textContent = words;
  $(`s-${name}`).setAttribute("aria-invalid", String(words !== ""));
}

function saveSettings(event, reconnect) {
  event.preventDefault();
  const bad = Object.keys(NUMBERS).filter((name) => {
    // A field of numbers in which something else was typed has no value.
    const words = $(`s-${name}`).validity.badInput
      ? `${NUMBERS[name][3]} is a number.`
      : wrong(name, $(`s-${name}`).value);
    complain(name, words);
    return words;
  });
  if (bad.length) return $(`s-${bad[0]}`).focus();
  const changes = Object.fromEntries(FIELDS.map((name) => [name, $(`s-${name}`).value]));
  changes.key = changes.key.trim();
  if (!isStored(state.current)) change(state.current, { system: changes.system });
  say(keep(changes) ? "Saved." : "The browser has no room to keep the settings.");
  $("settings").close();
  reconnect();
}

// ---- one conversation

let optioned = null;

function openOptions(conversation) {
  optioned = conversation;
  $("o-title").value = conversation.title;
  $("o-system").value = conversation.system;
  $("options").showModal();
  $("o-title").select();
}

function saveOptions(event) {
  event.preventDefault();
  const title = $("o-title").value.trim() || optioned.title;
  change(optioned, { title, system: $("o-system").value });
  $("options").close();
}

// ---- all conversations

async function importFile() {
  const [file] = $("import-file").files;
  $("import-file").value = "";
  if (!file) return;
  try {
    const count = await importJson(await file.text());
    toast(
      count === 0
        ? "Everything in this file was here already."
        : count === 1
          ? "1 conversation was imported."
          : `${count} conversations were imported.`,
    );
    $("settings").close();
  } catch (error) {
    toast(error.message);
  }
}

async function erase() {
  const count = state.conversations.size;
  const words = `All ${count} conversations are deleted from this browser. There is no way back but an export.`;
  if (!count || !(await ask("Delete all conversations?", words, "Delete all"))) return;
  for (const id of [...state.conversations.keys()]) {
    await store.change(id, { deleted: Date.now() });
    await purge(id);
    state.conversations.delete(id);
  }
  $("settings").close();
  emit("erased");
}

// ---- keys

export function openKeys() {
  const rows = KEYS.map(([keys, words]) => {
    const caps = keys
      .split("  ")
      .flatMap((combination, at) => [
        ...(at ? [" "] : []),
        ...combination.split(" ").map((key) => node("kbd", "", key)),
      ]);
    return node("div", "", node("dt", "", ...caps), node("dd", "", words));
  });
  $("keys-list").replaceChildren(...rows);
  $("keys").showModal();
}
