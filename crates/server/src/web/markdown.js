// Markdown, as models write it, to DOM nodes. Text only ever becomes text nodes and attributes that are set here, so
// nothing in an answer can become markup or script. `render(text)` gives a fragment.
//
// The text is a model's, or whoever wrote it into a prompt, so no pattern may take more than linear time: each looks at
// a place once, or at a bounded number of characters, and what is known not to come any more is not looked for again.

import { nodes as highlight } from "./highlight.js";
import { render as math } from "./math.js";

const DEPTH_MAX = 12;
// Characters of all formulas of a text; what is beyond is shown as it is written.
const TEX_MAX = 40000;
let texLeft = 0;

function formula(tex, display) {
  texLeft -= tex.length;
  return texLeft < 0 ? document.createTextNode(tex) : math(tex, display);
}

function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export function render(text) {
  texLeft = TEX_MAX;
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^\s{0,3}(#{1,6})(?=\s|$)/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const DISPLAY = [[/^\s*\$\$/, "$$"], [/^\s*\\\[/, "\\]"]];

function blocks(lines, depth) {
  const out = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) { at++; continue; }
    const taken = depth < DEPTH_MAX && block(lines, at, depth, out);
    if (taken) { at = taken; continue; }
    const begin = at++;
    while (at < lines.length && lines[at].trim() && !interrupts(lines, at)) at++;
    const paragraph = element("p");
    inline(lines.slice(begin, at).join("\n"), paragraph, 0);
    out.push(paragraph);
  }
  return out;
}

function interrupts(lines, at) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || /^\s{0,3}>/.test(line) || DISPLAY.some(([begin]) => begin.test(line)) || (ITEM.test(line) && !/^\s*\d/.test(line)) || /^\s*1[.)]\s/.test(line);
}

// The index after the block that begins at a line; 0 if that is none of these.
function block(lines, at, depth, out) {
  const line = lines[at];
  let match;
  if ((match = FENCE.exec(line))) return fence(lines, at, match, out);
  for (const [begin, end] of DISPLAY) if (begin.test(line)) return display(lines, at, begin, end, out);
  if ((match = HEADING.exec(line))) {
    const heading = element(`h${match[1].length}`);
    inline(headingText(line.slice(match[0].length)), heading, 0);
    out.push(heading);
    return at + 1;
  }
  if (RULE.test(line)) { out.push(element("hr")); return at + 1; }
  if (/^\s{0,3}>/.test(line)) {
    let end = at;
    while (end < lines.length && /^\s{0,3}>/.test(lines[end])) end++;
    out.push(element("blockquote", "", ...blocks(lines.slice(at, end).map((l) => l.replace(/^\s{0,3}> ?/, "")), depth + 1)));
    return end;
  }
  if (ITEM.test(line)) return list(lines, at, depth, out);
  if (line.includes("|") && isTableLine(lines[at + 1] ?? "")) return table(lines, at, out);
  return 0;
}

// Without the marks that may close it.
function headingText(text) {
  text = text.trim();
  let end = text.length;
  while (text[end - 1] === "#") end--;
  return end === 0 || /\s/.test(text[end - 1]) ? text.slice(0, end).trimEnd() : text;
}

// The line between a table's head and body.
function isTableLine(line) {
  return line.includes("-") && cells(line).every((cell) => /^:?-+:?$/.test(cell));
}

function fence(lines, at, [, mark, language], out) {
  let end = at + 1;
  while (end < lines.length && !lines[end].trim().startsWith(mark)) end++;
  const code = lines.slice(at + 1, end).join("\n");
  const copy = element("button", "plain", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code).catch(() => {});
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const body = element("pre", "", element("code", "", ...highlight(code, language)));
  body.tabIndex = 0;
  out.push(element("div", "code", element("header", "", element("span", "", language || "text"), copy), body));
  return end + 1;
}

function display(lines, at, begin, end, out) {
  let rest = lines[at].replace(begin, ""), tex = "", last = at;
  while (!rest.includes(end) && last + 1 < lines.length) {
    tex += rest + "\n";
    rest = lines[++last];
  }
  const close = rest.indexOf(end);
  out.push(element("div", "display", formula(tex + (close < 0 ? rest : rest.slice(0, close)), true)));
  const after = close < 0 ? "" : rest.slice(close + end.length).trim();
  if (after && after !== "." && after !== ",") {
    const paragraph = element("p");
    inline(after, paragraph, 0);
    out.push(paragraph);
  }
  return last + 1;
}

function list(lines, at, depth, out) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const node = element(ordered ? "ol" : "ul");
  if (ordered && parseInt(mark) !== 1) node.start = parseInt(mark);
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || match[1].length < indent.length || /\d/.test(match[2]) !== ordered || match[1].length >= indent.length + 4) break;
    const width = match[0].length;
    const body = [lines[at].slice(width)];
    for (at++; at < lines.length; at++) {
      const next = lines[at];
      if (!next.trim()) {
        const follows = lines[at + 1] ?? "";
        if (!follows.trim() || (!/^\s/.test(follows) && !ITEM.test(follows))) break;
        body.push("");
        continue;
      }
      const inner = /^\s*/.exec(next)[0].length;
      const item = ITEM.exec(next);
      if (item ? inner < Math.min(width, indent.length + 2) : inner <= indent.length && lines[at - 1].trim() === "") break;
      if (!item && inner <= indent.length && interrupts(lines, at)) break;
      body.push(next.slice(Math.min(inner, width)));
    }
    const children = blocks(body, depth + 1);
    const only = children[0]?.tagName === "P" && children.filter((child) => child.tagName === "P").length === 1;
    if (only) children.splice(0, 1, ...children[0].childNodes);
    node.append(element("li", "", ...children));
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at++;
  }
  out.push(node);
  return at;
}

function cells(line) {
  const trimmed = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return trimmed.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at, out) {
  const aligns = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
  const row = (line, kind) => {
    const tr = element("tr");
    cells(line).forEach((cell, index) => {
      const node = element(kind);
      if (aligns[index]) node.style.textAlign = aligns[index];
      inline(cell, node, 0);
      tr.append(node);
    });
    return tr;
  };
  const body = element("tbody");
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|"); end++) body.append(row(lines[end], "td"));
  out.push(element("div", "table", element("table", "", element("thead", "", row(lines[at], "th")), body)));
  return end;
}

// What stands between two marks. `open` is tried at a place; the text goes up to the first `close` after it, which is
// looked for with the marks' own conditions. Where none comes, none comes after any later place either.
const SPANS = [
  { open: /\\\(/y, close: /\\\)/g, make: (tex) => formula(tex, false) },
  { open: /\\\[/y, close: /\\\]/g, make: (tex) => formula(tex, true) },
  { open: /\$\$/y, close: /\$\$/g, make: (tex) => formula(tex, true) },
  { open: /\*\*(?=\S)/y, close: /(?<=\S)\*\*/g, make: (text, depth) => styled("strong", text, depth) },
  { open: /__(?=\S)/y, close: /(?<=\S)__(?!\w)/g, make: (text, depth) => styled("strong", text, depth) },
  { open: /~~(?=\S)/y, close: /(?<=\S)~~/g, make: (text, depth) => styled("del", text, depth) },
  { open: /\*(?=[^\s*])/y, close: /(?<=[^\s*])\*(?!\*)/g, make: (text, depth) => styled("em", text, depth) },
  { open: /_(?=[^\s_])/y, close: /(?<=[^\s_])_(?!\w)/g, make: (text, depth) => styled("em", text, depth) },
];

// Patterns that match at a place, or fail after a bounded number of characters.
const PLACES = [
  [/\\([\\`*_{}[\]()#+\-.!|~<>$])/y, (m) => document.createTextNode(m[1])],
  [/\\\n/y, () => element("br")],
  [/https?:\/\/[^\s<>()]{0,4000}[^\s<>().,;:!?'"]/y, (m) => link(m[0], m[0], DEPTH_MAX)],
];
const DOLLARS = /\$(?![\s\d.,]{0,100}\s)([^$\n]{0,1000}?[^$\s\\])\$(?!\d)/y;
const ADDRESS = /\(\s{0,100}<?([^\s)>]{1,1000})>?(?:\s{1,100}"[^"]{0,1000}")?\s{0,100}\)/y;

// Where something comes next, at or after a place. Asked with places that only grow, it passes over a text once.
function finder(text, pattern) {
  let known = -1, begin = 0;
  return (at) => {
    if (known === Infinity || (known >= at && begin <= at)) return known;
    begin = pattern.lastIndex = at;
    const found = pattern.exec(text);
    return (known = found ? found.index : Infinity);
  };
}

// The spans of one text.
class Spans {
  constructor(text) {
    this.text = text;
    this.closers = SPANS.map(({ close }) => finder(text, new RegExp(close.source, "g")));
    this.bracket = finder(text, /\]/g);
    this.newline = finder(text, /\n/g);
    this.backticks = null;
    this.addresses = new Map();
  }
  // What begins at a place: its length, and what makes its node, or null for text; null if nothing does.
  at(at, depth) {
    const character = this.text[at];
    if (character === "`") return this.code(at);
    if (character === " ") return this.spaces(at);
    if (character === "[" || character === "!") return this.link(at, depth);
    for (const [index, { open, close, make }] of SPANS.entries()) {
      const length = matches(open, this.text, at)?.[0].length;
      if (!length) continue;
      const end = this.closers[index](at + length + 1);
      if (end === Infinity) continue;
      const inside = this.text.slice(at + length, end);
      return { length: end - at + closing(close, this.text, end), make: () => make(inside, depth) };
    }
    for (const [pattern, make] of PLACES) {
      const match = matches(pattern, this.text, at);
      if (match) return { length: match[0].length, make: () => make(match) };
    }
    const tex = character === "$" && matches(DOLLARS, this.text, at);
    return tex ? { length: tex[0].length, make: () => formula(tex[1], false) } : null;
  }
  // Code ends with as many backticks as it began with. Runs that close nothing are text.
  code(at) {
    this.backticks ??= runs(this.text);
    const length = this.backticks.lengths.get(at);
    if (!length) return null;
    const places = this.backticks.places.get(length);
    while (places.length && places.at(-1) <= at) places.pop();
    if (!places.length) return { length, make: null };
    const inside = this.text.slice(at + length, places.at(-1));
    const padded = inside.length > 2 && inside.startsWith(" ") && inside.endsWith(" ") && inside.trim();
    return { length: places.at(-1) + length - at, make: () => element("code", "", padded ? inside.slice(1, -1) : inside) };
  }
  // Two spaces at the end of a line break it.
  spaces(at) {
    let end = at;
    while (this.text[end] === " ") end++;
    return this.text[end] === "\n" ? { length: end + 1 - at, make: () => element("br") } : { length: end - at, make: null };
  }
  link(at, depth) {
    const open = this.text[at] === "!" ? at + 1 : at;
    if (this.text[open] !== "[") return null;
    const close = this.bracket(open);
    if (close > this.newline(open) || this.text[close + 1] !== "(") return null;
    if (!this.addresses.has(close)) this.addresses.set(close, matches(ADDRESS, this.text, close + 1));
    const address = this.addresses.get(close);
    if (!address) return null;
    const label = this.text.slice(open + 1, close);
    return { length: close + 1 + address[0].length - at, make: () => link(label, address[1], depth) };
  }
}

function matches(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

function closing(close, text, at) {
  close.lastIndex = at;
  return close.exec(text)[0].length;
}

// Runs of backticks: their lengths by place, and by length their places, the last one first.
function runs(text) {
  const lengths = new Map(), places = new Map();
  for (const { 0: { length }, index } of text.matchAll(/`+/g)) {
    lengths.set(index, length);
    if (!places.has(length)) places.set(length, []);
    places.get(length).push(index);
  }
  places.forEach((list) => list.reverse());
  return { lengths, places };
}

function inline(text, parent, depth) {
  if (depth >= DEPTH_MAX || text.length > 200000) { parent.append(text); return; }
  const spans = new Spans(text);
  const special = /[\\$`*_~![h]| {2,}/g;
  let plain = 0;
  while (special.lastIndex < text.length) {
    const found = special.exec(text);
    if (!found) break;
    const at = found.index;
    if (found[0] === "_" && /\w/.test(text[at - 1] ?? "")) continue;
    const span = spans.at(at, depth + 1);
    if (!span) continue;
    special.lastIndex = at + span.length;
    if (!span.make) continue;
    parent.append(text.slice(plain, at), span.make());
    plain = special.lastIndex;
  }
  parent.append(text.slice(plain));
}

function styled(name, text, depth) {
  const node = element(name);
  inline(text, node, depth);
  return node;
}

// Only addresses that cannot run anything; images are not fetched, they become links.
function link(text, address, depth) {
  if (!/^(https?:|mailto:)/i.test(address)) return document.createTextNode(text);
  const node = element("a");
  node.href = address;
  node.target = "_blank";
  node.rel = "noopener noreferrer";
  inline(text || address, node, depth);
  return node;
}
