// The field in which messages are written, with their files, the model and how long it may think.

import { isRunning, send } from "./answers.js";
import { $, iconButton, node, say, toast } from "./dom.js";
import { FILES, TEXT_BYTES, isPicture, readFile, size } from "./files.js";
import { bottom, editLast, jump, lastMessage, stopHere } from "./log.js";
import { keep } from "./settings.js";
import { change, emit, isStored, modelOf, on, state } from "./state.js";
import { totals } from "./tree.js";

const SUGGESTIONS = [
  ["Explain", "Explain how a transformer predicts the next word, in five sentences."],
  ["Write", "Write a Python function that finds the longest word in a text, with a test."],
  ["Calculate", "Solve x² − 5x + 6 = 0 step by step."],
  ["Compare", "Compare rivers and lakes as places for fish, in a table."],
];
const EFFORTS = [
  ["", "Thinks as usual"],
  ["none", "Does not think"],
  ["low", "Thinks briefly"],
  ["medium", "Thinks longer"],
  ["high", "Thinks at length"],
];
const LEARNED = "wels.thinks";

/** What was typed and attached and not sent, by conversation; one that is not stored yet is "new". */
const drafts = new Map();
let files = [];
let drawn = null;

export function startComposer() {
  const input = $("input");
  input.addEventListener("input", grow);
  input.addEventListener("keydown", keys);
  input.addEventListener("paste", pasted);
  $("composer").addEventListener("submit", submit);
  $("attach").addEventListener("click", () => $("pick").click());
  $("attach").title = `Attach files: texts up to ${size(TEXT_BYTES)} each, pictures, up to ${FILES}`;
  $("pick").addEventListener("change", () => {
    attach($("pick").files);
    $("pick").value = "";
  });
  $("model").addEventListener("change", () => {
    keep({ model: $("model").value });
    change(state.current, { model: $("model").value });
    drawControls();
  });
  $("effort").addEventListener("change", () => change(state.current, { thinking: $("effort").value }));
  drop();
  suggest();
  on("open", opened);
  on("log", drawState);
  on("note", drawState);
  on("part", learn);
  on("ended", drawState);
  on("connection", drawControls);
}

/** Another conversation has its own draft. */
function opened() {
  if (drawn) drafts.set(drawn, { text: $("input").value, files });
  drawn = isStored(state.current) ? state.current.id : "new";
  const draft = drafts.get(drawn) ?? { text: "", files: [] };
  $("input").value = draft.text;
  files = draft.files;
  drawFiles();
  drawControls();
  drawState();
  grow();
}

function keys(event) {
  const breaks = event.shiftKey || event.isComposing || matchMedia("(hover: none) and (pointer: coarse)").matches;
  if (event.key === "Enter" && !breaks) {
    event.preventDefault();
    if (!isRunning(lastMessage())) $("composer").requestSubmit();
  }
  if (event.key === "ArrowUp" && !$("input").value) {
    event.preventDefault();
    editLast();
  }
}

function submit(event) {
  event.preventDefault();
  if (stopHere()) return;
  const text = $("input").value.trim();
  if (!text && !files.length) return;
  if (state.connected === "key") return emit("settings");
  const sent = files;
  $("input").value = "";
  files = [];
  drafts.delete(drawn);
  drawn = state.current.id;
  drawFiles();
  grow();
  const parent = lastMessage()?.id ?? "root";
  jump();
  send(state.current, parent, text, sent);
  if (location.hash !== `#c=${state.current.id}`) history.replaceState(null, "", `#c=${state.current.id}`);
}

/** The field is as high as its text. */
export function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
  $("send").disabled = !isRunning(lastMessage()) && !input.value.trim() && !files.length;
  bottom();
}

/** What is going on in the open conversation, and what it has cost. */
export function drawState() {
  const last = lastMessage();
  const running = isRunning(last);
  $("send").setAttribute("aria-label", running ? "Stop" : "Send");
  $("send").title = running ? "Stop (Esc)" : "Send (Enter)";
  $("send")
    .querySelector("use")
    .setAttribute("href", running ? "#i-stop" : "#i-up");
  const note = state.answers.get(last?.id)?.note;
  $("state").textContent = note
    ? `${note[0].toUpperCase()}${note.slice(1)}`
    : running && !last.content && !last.reasoning
      ? "The model reads…"
      : "";
  const { answers, tokens, cost, currency } = totals(state.messages);
  const parts = [`${tokens.toLocaleString("en")} tokens in ${answers === 1 ? "1 answer" : `${answers} answers`}`];
  if (cost > 0) parts.push(`${cost.toPrecision(2)} ${currency}`);
  $("totals").textContent = answers ? parts.join(" · ") : "";
  $("send").disabled = !running && !$("input").value.trim() && !files.length;
}

// ---- the model

/** Models that have been seen to think, where the server does not say. */
function learned() {
  try {
    return JSON.parse(localStorage.getItem(LEARNED)) ?? [];
  } catch {
    return [];
  }
}

function learn(message) {
  if (message.content || message.reasoning) drawState();
  if (!message.reasoning || learned().includes(message.model)) return;
  localStorage.setItem(LEARNED, JSON.stringify([...learned(), message.model]));
  drawControls();
}

export function drawControls() {
  const chosen = modelOf(state.current);
  const options = state.models.map(({ id }) => new Option(id, id, false, id === chosen));
  $("model").replaceChildren(...options);
  $("model").hidden = state.models.length === 0;
  $("model").disabled = state.models.length === 1;
  const model = state.models.find(({ id }) => id === chosen);
  $("effort").hidden = !(model?.thinking ?? learned().includes(chosen));
  $("effort").replaceChildren(
    ...EFFORTS.map(([value, words]) => new Option(words, value, false, value === state.current.thinking)),
  );
}

// ---- files

async function attach(list) {
  const wrong = [];
  for (const file of [...list]) {
    if (files.length >= FILES) {
      wrong.push(`A message takes ${FILES} files.`);
      break;
    }
    try {
      files = [...files, await readFile(file)];
    } catch (error) {
      wrong.push(error.message);
    }
    drawFiles();
  }
  if (wrong.length) toast(wrong.join(" "));
  else say("Attached.");
  grow();
  $("input").focus();
}

function drawFiles() {
  $("files").hidden = files.length === 0;
  $("files").replaceChildren(
    ...files.map((file) => {
      const away = iconButton("close", `Remove ${file.name}`, () => {
        files = files.filter((other) => other !== file);
        drawFiles();
        grow();
        $("input").focus();
      });
      const parts = [node("span", "name", file.name), node("span", "quiet", size(file.size)), away];
      if (isPicture(file)) {
        const image = node("img");
        image.src = file.data;
        image.alt = "";
        parts.unshift(image);
      }
      return node("li", "", ...parts);
    }),
  );
}

function pasted(event) {
  const list = event.clipboardData?.files;
  if (!list?.length) return;
  event.preventDefault();
  attach(list);
}

function drop() {
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!carries(event)) return;
    event.preventDefault();
    attach(event.dataTransfer.files);
  });
}

// ---- the empty page

function suggest() {
  $("suggestions").replaceChildren(
    ...SUGGESTIONS.map(([name, text]) => {
      const made = node("button", "suggestion", node("strong", "", name), node("span", "", text));
      made.type = "button";
      made.addEventListener("click", () => {
        $("input").value = text;
        grow();
        $("input").focus();
      });
      return made;
    }),
  );
}
