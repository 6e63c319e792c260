// What all messages have in common on the page: an article, and the row of tools below it.

import { button, iconButton, node } from "./dom.js";
import { isPicture } from "./files.js";
import { change, emit, state } from "./state.js";

/** What both kinds of messages have: the row of tools, made again where what it shows has changed. */
export class View {
  constructor(message, label) {
    this.message = message;
    this.article = node("article", `message ${message.role}`);
    this.article.setAttribute("aria-label", label);
    this.article.dataset.id = message.id;
    this.tools = node("div", "tools");
  }

  update(item) {
    this.message = item.message;
    const signature = JSON.stringify([
      item.index,
      item.count,
      item.message.status,
      item.message.usage,
      item.message.error,
    ]);
    if (signature === this.signature) return;
    this.signature = signature;
    const focused = this.tools.contains(document.activeElement)
      ? document.activeElement.getAttribute("aria-label")
      : null;
    this.tools.replaceChildren(...this.makeTools(), ...versions(item));
    this.after?.();
    if (focused) [...this.tools.children].find((tool) => tool.getAttribute("aria-label") === focused)?.focus();
  }
}

/** ‹ 2/3 › */
function versions({ index, count, versions: all, message }) {
  if (count < 2) return [];
  const to = (at) => change(state.current, { selected: { [message.parent]: all[at].id } });
  const earlier = iconButton("left", "Earlier version", () => to(index - 1));
  const later = iconButton("right", "Later version", () => to(index + 1));
  earlier.disabled = index === 0;
  later.disabled = index === count - 1;
  return [node("span", "versions", earlier, node("span", "count", `${index + 1}/${count}`), later)];
}

export function span(ms) {
  const seconds = Math.max(1, Math.round(ms / 1000));
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** What an answer took. */
export function numbers({ prompt, completion, rate, first_ms, cost, currency }) {
  const parts = [`${prompt} + ${completion} tokens`];
  if (rate > 0) parts.push(`${rate.toFixed(1)} tokens/s`);
  if (first_ms > 0) parts.push(`first after ${(first_ms / 1000).toFixed(first_ms < 1000 ? 2 : 1)} s`);
  if (cost > 0) parts.push(`${cost.toPrecision(2)} ${currency}`);
  return parts.join(" · ");
}

/** Why there is no more of an answer, and what can be done. */
export function notices(message, retry, withoutPictures) {
  const { status, error } = message;
  if (status === "stopped")
    return [node("p", "note", message.drawing ? "You stopped this drawing." : "You stopped this answer.")];
  if (status === "cut")
    return [node("p", "note", "The answer was cut off at its greatest length, which the settings or the server give.")];
  if (status !== "failed") return [];
  const actions = [button("Try again", () => retry(message), "primary small")];
  const sent = state.messages.get(message.parent);
  const seen = error.kind === "refused" && sent?.files?.some(isPicture);
  if (seen && withoutPictures)
    actions.unshift(button("Send without pictures", () => withoutPictures(sent), "primary small"));
  if (error.kind === "key") actions.unshift(button("Enter a key", () => emit("settings"), "primary small"));
  const box = node("div", "error", node("p", "", error.text), node("div", "row", ...actions));
  box.setAttribute("role", "alert");
  return [box];
}
