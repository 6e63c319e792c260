// A conversation is a tree of messages: each names the one before it, and versions of a message have the same one
// before them. Nothing here touches the page or the store.

/** In the place of a message before the first. */
export const ROOT = "root";

/** Messages by the one before them, oldest first. */
export function byParent(messages) {
  const all = new Map();
  for (const message of messages.values()) {
    const list = all.get(message.parent) ?? [];
    list.push(message);
    all.set(message.parent, list);
  }
  for (const list of all.values()) list.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  return all;
}

/** The messages that are shown, first to last: `{message, index, count}` with the number of its version and of all. */
export function path(selected, messages) {
  const children = byParent(messages);
  const shown = [];
  for (let parent = ROOT; shown.length <= messages.size;) {
    const versions = children.get(parent);
    if (!versions) break;
    const chosen = versions.find(({ id }) => id === selected[parent]) ?? versions.at(-1);
    shown.push({ message: chosen, index: versions.indexOf(chosen), count: versions.length, versions });
    parent = chosen.id;
  }
  return shown;
}

/** The messages from the first to this one. */
export function upTo(id, messages) {
  const line = [];
  for (let at = messages.get(id); at && line.length <= messages.size; at = messages.get(at.parent)) line.unshift(at);
  return line;
}

/** What is to be selected for a message to be shown. */
export function selecting(id, messages) {
  return Object.fromEntries(upTo(id, messages).map((message) => [message.parent, message.id]));
}

/** A title of whole words from what was said first. */
export function titleOf(text, chars = 48) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ").trim();
  if (line.length <= chars) return line;
  const cut = line.slice(0, chars + 1);
  const space = cut.lastIndexOf(" ");
  const kept = space > chars / 2 ? cut.slice(0, space) : Array.from(line).slice(0, chars).join("");
  return `${kept.replace(/[\s,;:.–—-]+$/, "")}…`;
}

/** The tokens and the cost of all answers, of all versions: `{answers, tokens, cost, currency}`. */
export function totals(messages) {
  const sum = { answers: 0, tokens: 0, cost: 0, currency: "" };
  for (const { usage } of messages.values()) {
    if (!usage) continue;
    sum.answers += 1;
    sum.tokens += usage.prompt + usage.completion;
    sum.cost += usage.cost;
    sum.currency = usage.currency || sum.currency;
  }
  return sum;
}
