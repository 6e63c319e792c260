// Drawings on the page: pictures as they come, how far they are, and what can be done with them.

import { isRunning } from "./answers.js";
import { $, button, download, icon, imageNode, node } from "./dom.js";
import { emit, state } from "./state.js";
import * as store from "./store.js";
import { View, notices, numbers } from "./view.js";

/** What a drawing was asked with, in words. */
export function described({ n, cfg, seed }) {
  const parts = [n === 1 ? "Draw a picture" : `Draw ${n} pictures`];
  if (cfg !== 5) parts.push(`guidance ${cfg}`);
  if (seed !== undefined) parts.push(`seed ${seed}`);
  return parts.join(" · ");
}

/** The answer to what was asked to be drawn. */
export class DrawingView extends View {
  /** `retry` draws again, `edit` changes what was asked. */
  constructor(message, retry, edit) {
    super(message, "Drawing");
    Object.assign(this, { retry, edit });
    this.frames = Array.from({ length: message.drawing.n }, (_, index) => this.frame(index));
    this.bar = node("progress");
    this.bar.setAttribute("aria-label", "Drawing");
    this.percent = node("span", "percent");
    this.progress = node("div", "progress", this.bar, this.percent);
    this.notice = node("div", "notices");
    this.article.append(
      node("div", "pictures", ...this.frames.map(({ figure }) => figure)),
      this.progress,
      this.notice,
      this.tools,
    );
  }

  frame(index) {
    const image = imageNode();
    const save = button("Download", () => saved(this.message, index), "plain small");
    const ask = button("Ask about it", () => asked(this.message, index), "plain small");
    save.prepend(icon("download"));
    ask.prepend(icon("clip"));
    const caption = node("figcaption", "quiet");
    const figure = node("figure", "", node("div", "canvas", image), node("div", "row wrap", save, ask), caption);
    return { figure, image, caption, shown: null };
  }

  update(item) {
    super.update(item);
    this.draw();
  }

  /** Shows what has come so far. */
  draw() {
    const { message } = this;
    const live = isRunning(message);
    this.article.setAttribute("aria-busy", String(live));
    this.frames.forEach((frame, index) => this.fill(frame, index, live));
    this.progress.hidden = !live;
    if (message.progress) this.bar.value = message.progress;
    else this.bar.removeAttribute("value");
    this.percent.textContent = message.progress ? `${Math.floor(message.progress * 100)}%` : "";
  }

  /** A picture that is there, or as far as it is, or its place while it is waited for. */
  fill(frame, index, live) {
    const { message } = this;
    const { figure, image, caption } = frame;
    const picture = message.pictures.find((found) => found.index === index);
    figure.hidden = !live && !picture;
    figure.classList.toggle("done", Boolean(picture));
    image.alt = picture ? `Drawn: ${promptOf(message)}` : "";
    caption.textContent = picture ? `Seed ${picture.seed}` : "";
    const partial = state.answers.get(message.id)?.partials[index];
    const shown = picture?.id ?? partial?.data ?? null;
    if (shown === frame.shown) return;
    const show = (data, part) => {
      image.src = data;
      image.style.clipPath = part < 1 ? `inset(0 0 ${100 * (1 - part)}% 0)` : "";
      frame.shown = shown;
    };
    if (partial) show(partial.data, partial.part);
    // Where it is not there yet, another tab is about to write it.
    else if (shown) store.get("files", shown).then((found) => found && show(found.data, 1));
  }

  makeTools() {
    const { message } = this;
    if (isRunning(message)) return [];
    const again = button("Draw again", () => this.retry(message), "plain small");
    const change = button("Change the words", () => this.edit(message), "plain small");
    again.prepend(icon("again"));
    change.prepend(icon("edit"));
    const tools = message.status === "failed" ? [change] : [again, change];
    if (message.usage) tools.push(node("span", "numbers", numbers(message.usage)));
    return tools;
  }

  after() {
    this.notice.replaceChildren(...notices(this.message, this.retry));
  }
}

function promptOf(message) {
  return state.messages.get(message.parent)?.content ?? "";
}

async function fileOf(message, index) {
  const picture = message.pictures.find((found) => found.index === index);
  const found = await store.get("files", picture.id);
  const bytes = Uint8Array.from(atob(found.data.slice(found.data.indexOf(",") + 1)), (char) => char.charCodeAt(0));
  const words = promptOf(message)
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-|-$/g, "")
    .slice(0, 40);
  return new File([bytes], `${words || "picture"}-${picture.seed}.png`, { type: "image/png" });
}

async function saved(message, index) {
  const file = await fileOf(message, index);
  download(file.name, file.type, file);
}

/** Puts it to the next question. */
async function asked(message, index) {
  emit("attach", await fileOf(message, index));
  $("input").focus();
}
