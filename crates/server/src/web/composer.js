// The field in which messages are written, with their files, the model and how long it may think.

import { isRunning, send } from "./answers.js";
import { $, button, iconButton, node, say, toast } from "./dom.js";
import { FILES, TEXT_BYTES, isPicture, readFile, size } from "./files.js";
import { bottom, editLast, jump, lastMessage, stopHere } from "./log.js";
import { place } from "./menu.js";
import { DRAWING, keep, settings, wrong } from "./settings.js";
import { change, drawerOf, emit, imageModels, isStored, modelOf, on, state } from "./state.js";
import { totals } from "./tree.js";

const SUGGESTIONS = [
  ["Explain", "Explain how a transformer predicts the next word, in five sentences."],
  ["Write", "Write a Python function that finds the longest word in a text, with a test."],
  ["Calculate", "Solve x² − 5x + 6 = 0 step by step."],
  ["Compare", "Compare rivers and lakes as places for fish, in a table."],
];
/** In the place of the last one, where a model draws. */
const TO_DRAW = ["Draw", "A red circle left of a blue square."];
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
  input.addEventListener("input", typed);
  input.addEventListener("keydown", keys);
  input.addEventListener("paste", pasted);
  $("composer").addEventListener("submit", submit);
  $("attach").addEventListener("click", () => $("pick").click());
  $("attach").title = `Attach files: texts up to ${size(TEXT_BYTES)} each, pictures, up to ${FILES}`;
  $("pick").addEventListener("change", () => {
    attach($("pick").files);
    $("pick").value = "";
  });
  $("model").addEventListener("change", () => choose($("model").value));
  $("draw").addEventListener("click", () => drawing(!draws()));
  $("how").addEventListener("click", openHow);
  for (const name of Object.keys(DRAWING)) $(`d-${name}`).addEventListener("input", () => how(name));
  $("effort").addEventListener("change", () => change(state.current, { thinking: $("effort").value }));
  drop();
  suggest();
  on("open", opened);
  on("log", drawState);
  on("note", drawState);
  on("part", learn);
  on("ended", drawState);
  on("attach", (file) => attach([file]));
  on("connection", () => {
    drawControls();
    suggest();
  });
}

/** Whether what is written is to be drawn. */
function draws() {
  return Boolean(state.current.draws) && imageModels().length > 0;
}

/** Takes a model for what is done in this conversation. */
function choose(id) {
  if (draws()) change(state.current, { drawer: id });
  else {
    keep({ model: id });
    change(state.current, { model: id });
  }
  drawControls();
}

/** Begins or ends to draw what is written. A picture is drawn of words alone. */
function drawing(on) {
  if (on && files.length) {
    const taken = files;
    files = [];
    drawFiles();
    toast("Pictures are drawn of words alone: the files were taken out.", "Undo", () => {
      drawing(false);
      files = taken;
      drawFiles();
      drawControls();
    });
  }
  change(state.current, { draws: on });
  drawControls();
  grow();
  $("input").focus();
}

/** `/draw` and a space begin to draw. */
function typed() {
  const [command, rest] = /^\/draw\s([^]*)/.exec($("input").value) ?? [];
  if (command && imageModels().length) {
    $("input").value = rest;
    drawing(true);
    say("What you write is drawn.");
  }
  grow();
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
  if (/^\/draw\b/.test(text) && !imageModels().length) return toast("No model of this server draws pictures.");
  if (blind()) {
    say($("blind").firstChild.textContent);
    return $("blind").querySelector("button").focus();
  }
  const sent = files;
  $("input").value = "";
  files = [];
  drafts.delete(drawn);
  drawn = state.current.id;
  drawFiles();
  grow();
  const parent = lastMessage()?.id ?? "root";
  jump();
  send(state.current, parent, text, sent, draws() ? asDrawn() : undefined);
  if (location.hash !== `#c=${state.current.id}`) history.replaceState(null, "", `#c=${state.current.id}`);
}

/** How the next pictures are drawn. */
function asDrawn() {
  const { draw_n, draw_cfg, draw_seed } = settings;
  return { n: Number(draw_n || 1), cfg: Number(draw_cfg || 5), ...(draw_seed !== "" && { seed: Number(draw_seed) }) };
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
    : running && last.drawing
      ? last.drawing.n === 1
        ? "Drawing a picture…"
        : `Drawing ${last.drawing.n} pictures…`
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
  const models = draws() ? imageModels() : state.models;
  const chosen = draws() ? drawerOf(state.current) : modelOf(state.current);
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id, false, id === chosen)));
  $("model").hidden = models.length === 0;
  $("model").disabled = models.length === 1;
  $("draw").hidden = imageModels().length === 0;
  $("draw").setAttribute("aria-pressed", String(draws()));
  $("how").hidden = !draws();
  $("attach").hidden = draws();
  $("input").placeholder = draws() ? "Describe a picture" : "Write a message";
  drawBlind();
  const model = state.models.find(({ id }) => id === chosen);
  $("effort").hidden = draws() || !(model?.thinking ?? learned().includes(chosen));
  $("effort").replaceChildren(
    ...EFFORTS.map(([value, words]) => new Option(words, value, false, value === state.current.thinking)),
  );
}

/** Says of attached pictures that the model does not see them, and which one does. */
function drawBlind() {
  const seers = imageModels().map(({ id }) => id);
  const parts = [node("span", "", `${modelOf(state.current)} reads texts only and sees no pictures.`)];
  if (seers.length) parts.push(button(`Ask ${seers[0]}`, () => choose(seers[0]), "link"));
  parts.push(button("Leave them out", () => keepFiles((file) => !isPicture(file)), "link"));
  $("blind").replaceChildren(...parts);
  $("blind").hidden = !blind();
}

/** Whether pictures are attached for a model that sees none. */
function blind() {
  const model = state.models.find(({ id }) => id === modelOf(state.current));
  return model?.images === false && files.some(isPicture);
}

// ---- how pictures are drawn

function openHow() {
  for (const name of Object.keys(DRAWING)) {
    $(`d-${name}`).value = settings[name];
    complain(name, "");
  }
  $("drawing").showPopover();
  place($("drawing"), $("composer").getBoundingClientRect(), false);
  $("d-draw_n").focus();
}

/** Keeps what was typed if it can be right. */
function how(name) {
  const field = $(`d-${name}`);
  const words = field.validity.badInput ? `${DRAWING[name][3]} is a number.` : wrong(name, field.value);
  complain(name, words);
  if (!words) keep({ [name]: field.value });
}

function complain(name, words) {
  $(`de-${name}`).textContent = words;
  $(`d-${name}`).setAttribute("aria-invalid", String(words !== ""));
}

// ---- files

function keepFiles(keeps) {
  files = files.filter(keeps);
  drawFiles();
  grow();
  $("input").focus();
}

async function attach(list) {
  if (draws()) drawing(false);
  const refused = [];
  for (const file of [...list]) {
    if (files.length >= FILES) {
      refused.push(`A message takes ${FILES} files.`);
      break;
    }
    try {
      files = [...files, await readFile(file)];
    } catch (error) {
      refused.push(error.message);
    }
    drawFiles();
  }
  if (refused.length) toast(refused.join(" "));
  else say("Attached.");
  grow();
  $("input").focus();
}

function drawFiles() {
  $("files").hidden = files.length === 0;
  drawBlind();
  $("files").replaceChildren(
    ...files.map((file) => {
      const away = iconButton("close", `Remove ${file.name}`, () => keepFiles((other) => other !== file));
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
  const drawers = imageModels().length > 0;
  const all = drawers ? [...SUGGESTIONS.slice(0, -1), TO_DRAW] : SUGGESTIONS;
  $("suggestions").replaceChildren(
    ...all.map(([name, text]) => {
      const made = node("button", "suggestion", node("strong", "", name), node("span", "", text));
      made.type = "button";
      made.addEventListener("click", () => {
        if (drawers) drawing(name === TO_DRAW[0]);
        $("input").value = text;
        grow();
        $("input").focus();
      });
      return made;
    }),
  );
}
