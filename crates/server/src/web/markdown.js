// Markdown, as models write it, to DOM nodes. Text only ever becomes text nodes and attributes that are set here, so
// nothing in an answer can become markup or script. `render(text)` gives a fragment.

import { nodes as highlight } from "./highlight.js";
import { render as math } from "./math.js";

const DEPTH_MAX = 12;

function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export function render(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
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
    inline(match[2], heading, 0);
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
  if (line.includes("|") && TABLE_LINE.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) return table(lines, at, out);
  return 0;
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
  out.push(element("div", "display", math(tex + (close < 0 ? rest : rest.slice(0, close)), true)));
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

// In the order in which they are tried at each place.
const SPANS = [
  [/\\\(([\s\S]+?)\\\)/y, (m) => math(m[1], false)],
  [/\\\[([\s\S]+?)\\\]/y, (m) => math(m[1], true)],
  [/\$\$([\s\S]+?)\$\$/y, (m) => math(m[1], true)],
  [/\$(?![\s\d.,]*\s)([^$\n]*?[^$\s\\])\$(?!\d)/y, (m) => math(m[1], false)],
  [/\\([\\`*_{}[\]()#+\-.!|~<>$])/y, (m) => document.createTextNode(m[1])],
  [/(`+)([\s\S]*?[^`])\1(?!`)/y, (m) => element("code", "", m[2].replace(/^ (.*[^ ].*) $/s, "$1"))],
  [/\*\*(?=\S)([\s\S]*?\S)\*\*/y, (m, depth) => styled("strong", m[1], depth)],
  [/__(?=\S)([\s\S]*?\S)__(?!\w)/y, (m, depth) => styled("strong", m[1], depth)],
  [/~~(?=\S)([\s\S]*?\S)~~/y, (m, depth) => styled("del", m[1], depth)],
  [/\*(?=[^\s*])([\s\S]*?[^\s*])\*(?!\*)/y, (m, depth) => styled("em", m[1], depth)],
  [/_(?=[^\s_])([\s\S]*?[^\s_])_(?!\w)/y, (m, depth) => styled("em", m[1], depth)],
  [/!?\[([^\]\n]*)\]\(\s*<?([^\s)>]+)>?(?:\s+"[^"]*")?\s*\)/y, (m, depth) => link(m[1], m[2], depth)],
  [/https?:\/\/[^\s<>()]*[^\s<>().,;:!?'"]/y, (m, depth) => link(m[0], m[0], DEPTH_MAX)],
  [/ {2,}\n|\\\n/y, () => element("br")],
];

function inline(text, parent, depth) {
  if (depth >= DEPTH_MAX || text.length > 200000) { parent.append(text); return; }
  let plain = 0;
  const special = /[\\$`*_~![h \n]/g;
  while (special.lastIndex < text.length) {
    const found = special.exec(text);
    if (!found) break;
    const at = found.index;
    if (found[0] === "_" && /\w/.test(text[at - 1] ?? "")) continue;
    for (const [pattern, make] of SPANS) {
      pattern.lastIndex = at;
      const match = pattern.exec(text);
      if (!match) continue;
      parent.append(text.slice(plain, at), make(match, depth + 1));
      plain = special.lastIndex = at + match[0].length;
      break;
    }
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
