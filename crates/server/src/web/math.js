// TeX in Markdown: `$x$`, `$$x$$`, `\(x\)`, `\[x\]` and bare environments as rules of markdown-it; MathML by Temml.

import { temml } from "./vendor/renderers.js";

/** Characters of one formula, and of all of one text: above that they are shown as they were written. */
const FORMULA_CHARS = 8_000;
const TEXT_CHARS = 100_000;
/** Of elements in one another, which browsers lay out by recursion. */
const DEPTH = 100;
const OPTIONS = { throwOnError: true, trust: false, strict: false, maxExpand: 300, maxSize: [50, 100] };
const ENVIRONMENT = /^\\begin\{((?:align|alignat|equation|gather|multline|eqnarray|flalign|displaymath|math)\*?)\}/;

/** The element of a formula. `budget.chars` counts down over a text. */
export function formula(source, display, budget) {
  const tex = starred(source);
  budget.chars -= tex.length;
  const box = document.createElement(display ? "div" : "span");
  box.className = display ? "display" : "inline";
  if (budget.chars < 0 || tex.length > FORMULA_CHARS || nesting(tex) > DEPTH / 2 || !made(box, tex, display))
    return null;
  return box;
}

function made(box, tex, display) {
  try {
    temml.render(tex, box, { ...OPTIONS, displayMode: display });
  } catch {
    return false; // no TeX, or none that Temml knows
  }
  return depth(box) <= DEPTH;
}

/** Numbers beside equations would count over all answers of the page, so there are none. */
function starred(tex) {
  return tex
    .replace(/\\(begin|end)\{(align|alignat|equation|gather|flalign)\}/g, "\\$1{$2*}")
    .replace(/\\(begin|end)\{eqnarray\*?\}/g, "\\$1{align*}")
    .replace(/\\(begin|end)\{multline\*?\}/g, "\\$1{gather*}");
}

function nesting(tex) {
  let most = 0,
    now = 0;
  for (const [mark] of tex.matchAll(/\\[{}]|[{}]|\\(?:left|right|begin|end)(?![a-zA-Z])/g)) {
    if (mark === "{" || mark === "\\left" || mark === "\\begin") most = Math.max(most, ++now);
    else if (!mark.startsWith("\\") || mark.length > 2) now--;
  }
  return most;
}

function depth(root) {
  let most = 0;
  for (let level = [root]; level.length; most++) level = level.flatMap((element) => [...element.children]);
  return most;
}

/** Adds the rules to a parser. */
export function mathRules(md) {
  md.inline.ruler.before("escape", "math", inlineMath);
  md.block.ruler.before("fence", "math", blockMath, { alt: ["paragraph", "reference", "blockquote", "list"] });
}

const PAIRS = [
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
  ["$", "$", false],
];

function inlineMath(state, silent) {
  const { src, pos } = state;
  const first = src.charCodeAt(pos);
  if (first !== 0x24 && first !== 0x5c) return false;
  const pair = PAIRS.find(([open]) => src.startsWith(open, pos));
  if (!pair) return false;
  const [open, close, display] = pair;
  const begin = pos + open.length;
  const end = open === "$" ? dollar(state, begin) : closing(state, close, begin);
  if (end < 0 || end > state.posMax || !src.slice(begin, end).trim()) return skipped(state, open, silent);
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = src.slice(begin, end).trim();
    token.markup = src.slice(pos, end + close.length);
    token.block = display;
  }
  state.pos = end + close.length;
  return true;
}

/** `$$` that opens nothing is two characters of text, and not a `$` and another. */
function skipped(state, open, silent) {
  if (open !== "$$") return false;
  if (!silent) state.pending += "$$";
  state.pos += 2;
  return true;
}

/** Where a text is next, or -1; that it is nowhere behind a place is found out once. */
function closing(state, text, from) {
  state.nowhere ??= {};
  if (state.nowhere[text] <= from) return -1;
  const at = state.src.indexOf(text, from);
  if (at < 0) state.nowhere[text] = from;
  return at;
}

/** Pandoc's rule, by which "$5 and $10" is no formula: no space inside the marks, no digit behind them, one line. */
function dollar(state, begin) {
  const { src } = state;
  if (/[\s$]/.test(src[begin] ?? " ")) return -1;
  for (let at = closing(state, "$", begin); at >= 0; at = closing(state, "$", at + 1)) {
    if (at - begin > FORMULA_CHARS || src.slice(begin, at).includes("\n\n")) return -1;
    if (src[at - 1] === "\\") continue;
    return /\s/.test(src[at - 1]) || /\d/.test(src[at + 1] ?? "") ? -1 : at;
  }
  return -1;
}

function blockMath(state, line, lines, silent) {
  const begin = state.bMarks[line] + state.tShift[line];
  if (state.sCount[line] - state.blkIndent >= 4) return false;
  const rest = state.src.slice(begin, state.eMarks[line]);
  const environment = ENVIRONMENT.exec(rest);
  const [open, close] = environment
    ? ["", `\\end{${environment[1]}}`]
    : rest.startsWith("$$")
      ? ["$$", "$$"]
      : rest.startsWith("\\[")
        ? ["\\[", "\\]"]
        : [];
  if (open === undefined) return false;
  const end = lastLine(state, line, lines, begin + open.length, close);
  if (!end) return false;
  if (silent) return true;
  const token = state.push("math_block", "", 0);
  token.map = [line, end.line + 1];
  token.markup = state.getLines(line, end.line + 1, state.blkIndent, false);
  const inside = token.markup.trim();
  token.content = environment ? inside : inside.slice(open.length, end.open ? undefined : -close.length).trim();
  token.hidden = end.open;
  state.line = end.line + 1;
  return true;
}

/** The line that a block of mathematics ends with. One that is still being written reaches to the end. */
function lastLine(state, line, lines, from, close) {
  state.nowhere ??= {};
  if (state.nowhere[close] <= line) return null;
  for (let at = line; at < lines; at++) {
    if (at > line && state.sCount[at] < state.blkIndent) return null;
    const begin = at === line ? from : state.bMarks[at];
    const text = state.src.slice(begin, state.eMarks[at]);
    const found = text.indexOf(close);
    if (found >= 0) return text.slice(found + close.length).trim() ? null : { line: at, open: false };
  }
  if (state.env.live) return { line: lines - 1, open: true };
  if (state.blkIndent === 0) state.nowhere[close] = line;
  return null;
}
