// Markdown as elements: markdown-it makes tokens, highlight.js parts of code, and this file elements of both. Neither
// writes HTML, so nothing that a model says can become a script, a style or a request.

import { button, copy, icon, node } from "./dom.js";
import { formula, mathRules } from "./math.js";
import { MarkdownIt, hljs } from "./vendor/renderers.js";

/** Characters of code that are coloured. */
const CODE_CHARS = 40_000;
/** Elements in one another, which browsers lay out by recursion. */
const DEPTH = 60;
/** Characters of formulas in one text. */
const FORMULAS = 100_000;
const SCHEMES = /^(https?:|mailto:)/i;
/** HTML that models write in Markdown and that is harmless without attributes. */
const TAG = /^<(\/?)(br|sub|sup|kbd|mark|u|b|i|em|strong|s|del|ins|small)\s*\/?>/i;

const md = new MarkdownIt({ html: false, linkify: true, breaks: true, maxNesting: 40 });
md.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
md.validateLink = (address) => SCHEMES.test(address.trim());
md.inline.ruler.before("autolink", "tag", tag);
mathRules(md);

function tag(state, silent) {
  if (state.src.charCodeAt(state.pos) !== 0x3c) return false;
  const found = TAG.exec(state.src.slice(state.pos, state.pos + 12));
  if (!found) return false;
  const name = found[2].toLowerCase();
  if (!silent) {
    const token = state.push(name === "br" ? "hardbreak" : "tag", name, 0);
    token.content = found[0];
    token.hidden = found[1] === "/"; // it closes
  }
  state.pos += found[0].length;
  return true;
}

/**
 * The blocks of a text: for each its element and where it begins in the text. `live` is a text that still grows, whose
 * last block may become another.
 */
export function blocks(text, live = false) {
  const source = pipes(text);
  const env = { live, budget: { chars: FORMULAS } };
  const tokens = md.parse(source, env);
  const made = [];
  for (let begin = 0, at = 0, level = 0; at < tokens.length; at++) {
    level += tokens[at].nesting;
    if (level > 0) continue;
    const part = document.createDocumentFragment();
    build(part, tokens.slice(begin, at + 1), env);
    made.push({ line: tokens[begin].map?.[0] ?? 0, part });
    begin = at + 1;
  }
  return made;
}

/** All of a text. */
export function render(text) {
  const all = document.createDocumentFragment();
  for (const { part } of blocks(text)) all.append(part);
  return all;
}

/** `|` in code in a row of a table parts cells in GitHub's Markdown; models mean that it does not. */
function pipes(text) {
  if (!text.includes("`") || !text.includes("|")) return text;
  let fence = "";
  return text
    .split("\n")
    .map((line) => {
      const mark = /^\s*(```+|~~~+)/.exec(line)?.[1];
      if (mark && (!fence || (mark.startsWith(fence) && line.trim() === mark))) fence = fence ? "" : mark;
      if (fence || !/^\s*\|/.test(line)) return line;
      return line.replace(/`[^`]*`/g, (code) => code.replace(/(?<!\\)\|/g, "\\|"));
    })
    .join("\n");
}

function build(root, tokens, env) {
  const open = [root];
  tokens.forEach((token, at) => {
    const top = open.at(-1);
    if (token.nesting < 0) return token.hidden || open.pop();
    if (token.nesting > 0) {
      if (token.hidden) return; // the paragraphs of a tight list
      const made = block(token);
      top.append(token.type === "table_open" ? table(made) : made);
      return open.push(made);
    }
    if (token.type === "inline") return buildInline(top, token.children, env, isTask(tokens, at));
    top.append(leaf(token, env));
  });
}

function block(token) {
  const made = document.createElement(token.tag);
  if (token.attrGet("start")) made.start = Number(token.attrGet("start"));
  const side = /text-align:(\w+)/.exec(token.attrGet("style") ?? "");
  if (side) made.className = side[1];
  return made;
}

/** A wide table scrolls, for keys too. */
function table(made) {
  const box = node("div", "table", made);
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Table");
  return box;
}

function leaf(token, env) {
  if (token.type === "hr") return document.createElement("hr");
  if (token.type === "math_block") return math(token, true, env);
  return code(token.content, token.info?.trim().split(/\s+/)[0] ?? "");
}

function math(token, display, env) {
  const made = token.hidden ? null : formula(token.content, display, env.budget);
  return made ?? node(display ? "pre" : "code", "tex", token.markup);
}

/** Code with its language, a button that copies it, and colours. */
export function code(text, language) {
  const inside = node("code");
  const take = button("Copy", () => copy(inside.textContent), "plain copy");
  take.prepend(icon("copy"));
  colour(inside, text, language);
  const pre = node("pre", "", inside);
  pre.tabIndex = 0;
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
  const made = node("div", "code", node("header", "", node("span", "", language), take), pre);
  made.dataset.language = language;
  return made;
}

function colour(box, text, language) {
  const known = language && text.length <= CODE_CHARS && hljs.getLanguage(language);
  if (!known || !Object.hasOwn(known, "name")) return box.append(text);
  try {
    parts(box, hljs.highlight(text, { language, ignoreIllegals: true })._emitter.rootNode.children);
  } catch {
    box.replaceChildren(text);
  }
}

function parts(box, children) {
  for (const child of children) {
    if (typeof child === "string") {
      box.append(child);
    } else {
      const scope = child.scope && /^[\w.-]+$/.test(child.scope) ? `hl-${child.scope.split(".")[0]}` : "";
      const inside = node("span", scope);
      parts(inside, child.children);
      box.append(inside);
    }
  }
}

function isTask(tokens, at) {
  return tokens[at - 1]?.type === "paragraph_open" && tokens[at - 2]?.type === "list_item_open";
}

function buildInline(root, tokens, env, task) {
  const open = [root];
  const names = [""];
  const push = (made, name) => {
    if (open.length < DEPTH) open.at(-1).append(made);
    open.push(open.length < DEPTH ? made : open.at(-1));
    names.push(name);
  };
  const pop = () => {
    open.pop();
    names.pop();
  };
  tokens.forEach((token, at) => {
    const top = open.at(-1);
    if (token.nesting > 0) push(token.type === "link_open" ? link(token.attrGet("href")) : node(token.tag), token.type);
    else if (token.nesting < 0) {
      while (open.length > 1 && !names.at(-1).endsWith("_open")) pop(); // tags that were not closed
      if (open.length > 1) pop();
    } else if (token.type === "tag" && token.hidden) {
      names.at(-1) === token.tag ? pop() : top.append(token.content);
    } else if (token.type === "tag") push(node(token.tag), token.tag);
    else top.append(inline(token, env, task && at === 0));
  });
}

function inline(token, env, task) {
  switch (token.type) {
    case "softbreak":
    case "hardbreak":
      return document.createElement("br");
    case "code_inline":
      return node("code", "", token.content);
    case "math":
      return math(token, token.block, env);
    case "image":
      return picture(token);
    default:
      return task ? box(token.content) : token.content;
  }
}

/** `[x] done` of a list. */
function box(text) {
  const found = /^\[([ xX])\]\s/.exec(text);
  if (!found) return text;
  const made = node("input", "task");
  made.type = "checkbox";
  made.disabled = true;
  made.checked = found[1] !== " ";
  made.setAttribute("aria-label", made.checked ? "done" : "to do");
  const all = document.createDocumentFragment();
  all.append(made, text.slice(found[0].length));
  return all;
}

function link(address) {
  const made = node("a");
  if (SCHEMES.test(address)) made.href = address;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  return made;
}

/** Pictures of elsewhere would tell of who reads this, so there is a link in their place. */
function picture(token) {
  const made = link(token.attrGet("src") ?? "");
  made.append(token.content || token.attrGet("src"));
  return made;
}
