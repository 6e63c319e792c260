// TeX, as models write it, to MathML. What is not understood is shown as it was written. `render(tex, display)` gives an
// element.

const NS = "http://www.w3.org/1998/Math/MathML";
const DEPTH_MAX = 60;
// Browsers take more than linear time to make a formula's nodes: 0.2 s for 5,000 characters, 15 s for 40,000.
const LENGTH_MAX = 4000;

const LETTERS = {
  alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ϵ", varepsilon: "ε", zeta: "ζ", eta: "η", theta: "θ", vartheta: "ϑ",
  iota: "ι", kappa: "κ", lambda: "λ", mu: "μ", nu: "ν", xi: "ξ", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", upsilon: "υ", phi: "ϕ",
  varphi: "φ", chi: "χ", psi: "ψ", omega: "ω", Gamma: "Γ", Delta: "Δ", Theta: "Θ", Lambda: "Λ", Xi: "Ξ", Pi: "Π", Sigma: "Σ",
  Phi: "Φ", Psi: "Ψ", Omega: "Ω", infty: "∞", partial: "∂", nabla: "∇", ell: "ℓ", hbar: "ℏ", emptyset: "∅", varnothing: "∅",
  Re: "ℜ", Im: "ℑ", aleph: "ℵ", angle: "∠", triangle: "△", degree: "°", circ: "∘", prime: "′",
};
const OPERATORS = {
  times: "×", cdot: "⋅", div: "÷", pm: "±", mp: "∓", le: "≤", leq: "≤", ge: "≥", geq: "≥", ne: "≠", neq: "≠", approx: "≈", equiv: "≡",
  sim: "∼", propto: "∝", ll: "≪", gg: "≫", in: "∈", notin: "∉", ni: "∋", subset: "⊂", subseteq: "⊆", supset: "⊃", supseteq: "⊇",
  cup: "∪", cap: "∩", setminus: "∖", land: "∧", wedge: "∧", lor: "∨", vee: "∨", neg: "¬", lnot: "¬", forall: "∀", exists: "∃",
  to: "→", rightarrow: "→", leftarrow: "←", Rightarrow: "⇒", Leftarrow: "⇐", Leftrightarrow: "⇔", leftrightarrow: "↔", iff: "⇔",
  implies: "⇒", mapsto: "↦", mid: "∣", parallel: "∥", perp: "⊥", oplus: "⊕", otimes: "⊗", ast: "∗", star: "⋆", bullet: "•",
  dots: "…", ldots: "…", cdots: "⋯", vdots: "⋮", ddots: "⋱", colon: ":", langle: "⟨", rangle: "⟩", lfloor: "⌊", rfloor: "⌋",
  lceil: "⌈", rceil: "⌉", lvert: "|", rvert: "|", lVert: "‖", rVert: "‖", vert: "|", Vert: "‖", "|": "‖", "{": "{", "}": "}",
  "%": "%", $: "$", "#": "#", "&": "&", _: "_",
  therefore: "∴", because: "∵", cong: "≅", uparrow: "↑", downarrow: "↓",
};
const SPACES = { quad: "1em", qquad: "2em", ",": "0.167em", ":": "0.222em", ";": "0.278em", " ": "0.25em", "!": "-0.167em" };
const LARGE = { sum: "∑", prod: "∏", int: "∫", iint: "∬", oint: "∮", bigcup: "⋃", bigcap: "⋂", bigoplus: "⨁", coprod: "∐" };
const NAMES = new Set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp det dim ker gcd deg arg Pr hom".split(" "));
const LIMITS = new Set("lim max min sup inf argmax argmin limsup liminf".split(" "));
const ACCENTS = { hat: "^", widehat: "^", bar: "¯", overline: "‾", tilde: "~", widetilde: "~", vec: "→", dot: "˙", ddot: "¨" };
const FONTS = { mathbb: "double-struck", mathbf: "bold", boldsymbol: "bold", mathcal: "script", mathscr: "script", mathfrak: "fraktur" };
const BRACKETS = { pmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖", cases: "{" };

// An entry of a table; what all objects have, such as `constructor`, is none.
const entry = (table, name) => (Object.hasOwn(table, name) ? table[name] : undefined);

function element(name, ...children) {
  const node = document.createElementNS(NS, name);
  node.append(...children);
  return node;
}

function text(name, content, attributes = {}) {
  const node = element(name, content);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

// Styled letters as Unicode has them: MathML Core knows no `mathvariant` but `normal`.
function styled(content, font) {
  const base = { bold: [0x1d400, 0x1d41a, 0x1d7ce], "double-struck": [0x1d538, 0x1d552, 0x1d7d8], script: [0x1d49c, 0x1d4b6], fraktur: [0x1d504, 0x1d51e] }[font];
  const holes = { "double-struck": { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" }, script: { B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ" }, fraktur: { C: "ℭ", H: "ℌ", I: "ℑ", R: "ℜ", Z: "ℨ" } }[font] ?? {};
  return [...content].map((c) => {
    if (holes[c]) return holes[c];
    const code = c.codePointAt(0);
    if (c >= "A" && c <= "Z") return String.fromCodePoint(base[0] + code - 65);
    if (c >= "a" && c <= "z") return String.fromCodePoint(base[1] + code - 97);
    if (c >= "0" && c <= "9" && base[2]) return String.fromCodePoint(base[2] + code - 48);
    return c;
  }).join("");
}

class Reader {
  constructor(tex) {
    this.tokens = tex.match(/\\[a-zA-Z]+\*?|\\[\s\S]|[{}^_&]|\d+(?:\.\d+)?|\s+|[\s\S]/gu) ?? [];
    this.at = 0;
    this.depth = 0;
  }
  peek() {
    while (/^\s+$/.test(this.tokens[this.at] ?? "")) this.at++;
    return this.tokens[this.at];
  }
  next() {
    this.peek();
    return this.tokens[this.at++];
  }
  // `{…}` as it is written.
  raw() {
    if (this.peek() !== "{") return this.next() ?? "";
    this.at++;
    let depth = 1, out = "";
    while (this.at < this.tokens.length) {
      const token = this.tokens[this.at++];
      if (token === "{") depth++;
      if (token === "}" && --depth === 0) break;
      out += token;
    }
    return out;
  }
  // One argument.
  group() {
    if (++this.depth > DEPTH_MAX) throw new Error("too deep");
    let group;
    if (this.peek() !== "{") group = this.atom() ?? element("mrow");
    else {
      this.at++;
      group = this.row((token) => token === "}");
      this.next();
    }
    this.depth--;
    return group;
  }
  row(ends) {
    if (++this.depth > DEPTH_MAX) throw new Error("too deep");
    // All at once: browsers look at every child of a row with each that comes.
    const atoms = document.createDocumentFragment();
    while (this.peek() !== undefined && !ends(this.peek())) {
      const atom = this.scripted();
      if (atom) atoms.append(atom);
    }
    this.depth--;
    return element("mrow", atoms);
  }
  scripted() {
    const first = this.peek();
    let base = first === "^" || first === "_" ? element("mrow") : this.atom();
    let sub, sup, primes = "";
    for (;;) {
      if (this.peek() === "_" && !sub) { this.at++; sub = this.group(); }
      else if (this.peek() === "^" && !sup) { this.at++; sup = this.group(); }
      else if (this.peek() === "'") { this.at++; primes += "′"; }
      else break;
    }
    if (primes) sup = element("mrow", text("mo", primes), ...(sup ? [sup] : []));
    if (!base || (!sub && !sup)) return base;
    const limits = base.dataset?.limits === "1";
    if (sub && sup) return element(limits ? "munderover" : "msubsup", base, sub, sup);
    return sub ? element(limits ? "munder" : "msub", base, sub) : element(limits ? "mover" : "msup", base, sup);
  }
  atom() {
    const token = this.next();
    if (token === undefined) return null;
    if (token === "{") { this.at--; return this.group(); }
    if (/^\d/.test(token)) return text("mn", token);
    if (/^\p{L}$/u.test(token)) return text("mi", token);
    if (token === "~") return text("mtext", "\u00a0");
    if (!token.startsWith("\\")) return text("mo", token === "-" ? "−" : token, "()[]|".includes(token) ? { stretchy: "false" } : {});
    return this.command(token.slice(1).replace(/\*$/, ""));
  }
  command(name) {
    if (entry(LETTERS, name)) return text("mi", LETTERS[name]);
    if (entry(LARGE, name)) return this.limited(text("mo", LARGE[name]), !name.endsWith("int"));
    if (NAMES.has(name)) return text("mi", name, { mathvariant: "normal" });
    if (LIMITS.has(name)) return this.limited(text("mi", name, { mathvariant: "normal" }), true);
    if (entry(FONTS, name)) return text("mi", styled(this.raw(), FONTS[name]));
    if (entry(ACCENTS, name)) {
      const over = element("mover", this.group(), text("mo", ACCENTS[name], { stretchy: String(/over|wide/.test(name)) }));
      over.setAttribute("accent", "true");
      return over;
    }
    if (entry(SPACES, name)) {
      const space = element("mspace");
      space.setAttribute("width", SPACES[name]);
      return space;
    }
    switch (name) {
      case "frac": case "dfrac": case "tfrac": case "cfrac": return element("mfrac", this.group(), this.group());
      case "binom": {
        const fraction = element("mfrac", this.group(), this.group());
        fraction.setAttribute("linethickness", "0");
        return element("mrow", text("mo", "("), fraction, text("mo", ")"));
      }
      case "sqrt": return this.root();
      case "text": case "textrm": case "textbf": case "textit": case "mbox": return text("mtext", this.raw());
      case "mathrm": case "operatorname": case "mathit": case "mathsf": case "mathtt": return text("mi", this.raw(), { mathvariant: "normal" });
      case "boxed": { const box = element("mrow", this.group()); box.classList.add("boxed"); return box; }
      case "underline": case "underbrace": return this.limited(element("munder", this.group(), text("mo", name === "underline" ? "_" : "⏟")), true);
      case "overbrace": return this.limited(element("mover", this.group(), text("mo", "⏞")), true);
      case "left": return this.fenced();
      case "begin": return this.environment(this.raw());
      case "not": return text("mo", ({ "=": "≠", "\\in": "∉" })[this.peek()] ? ({ "=": "≠", "\\in": "∉" })[this.next()] : "̸");
      case "pmod": return element("mrow", text("mo", "("), text("mtext", "mod\u00a0"), this.group(), text("mo", ")"));
      case "bmod": case "mod": return text("mo", "mod");
      case "tag": return text("mtext", `\u2003(${this.raw()})`);
      case "big": case "Big": case "bigg": case "Bigg": case "bigl": case "bigr": case "Bigl": case "Bigr": case "displaystyle": case "textstyle": case "limits": case "nolimits": case "right": case "hline": case "\\": return null;
      default: return entry(OPERATORS, name) ? text("mo", OPERATORS[name]) : text("mtext", "\\" + name);
    }
  }
  limited(node, limits) {
    if (limits) node.dataset.limits = "1";
    return node;
  }
  root() {
    if (this.peek() !== "[") return element("msqrt", this.group());
    this.at++;
    const index = this.row((token) => token === "]");
    this.next();
    return element("mroot", this.group(), index);
  }
  delimiter() {
    const token = this.next() ?? "";
    return token === "." ? "" : token.startsWith("\\") ? entry(OPERATORS, token.slice(1)) ?? "" : token;
  }
  fenced() {
    const open = this.delimiter();
    const row = this.row((token) => token === "\\right");
    this.next();
    const close = this.peek() === undefined ? "" : this.delimiter();
    const fence = (content) => (content ? [text("mo", content, { fence: "true", stretchy: "true" })] : []);
    return element("mrow", ...fence(open), row, ...fence(close));
  }
  environment(name) {
    const bare = name.replace(/\*$/, "");
    if (bare === "array") this.raw();
    const table = element("mtable");
    const ends = (token) => token === "&" || token === "\\\\" || token === "\\end";
    for (let row = element("mtr"); ; ) {
      row.append(element("mtd", this.row(ends)));
      const token = this.next();
      if (token === "&") continue;
      table.append(row);
      row = element("mtr");
      if (token === "\\\\" && this.peek() !== "\\end") continue;
      if (token === "\\\\") this.next();
      break;
    }
    if (this.peek() !== undefined) this.raw();
    if (/^(aligned|align|split|eqnarray|gathered|cases)$/.test(bare)) {
      table.setAttribute("displaystyle", String(bare !== "cases"));
      table.setAttribute("columnalign", bare === "cases" ? "left" : "right left right left");
      for (const row of table.children) [...row.children].forEach((cell, at) => cell.classList.add(bare === "cases" || at % 2 ? "left" : "right"));
    }
    const [open, close] = [...(entry(BRACKETS, bare) ?? "")];
    const fence = (content) => (content ? [text("mo", content, { fence: "true", stretchy: "true" })] : []);
    return element("mrow", ...fence(open), table, ...fence(close));
  }
}

export function render(tex, display) {
  const math = element("math");
  math.setAttribute("display", display ? "block" : "inline");
  try {
    if (tex.length > LENGTH_MAX) throw new Error("too long");
    const reader = new Reader(tex);
    while (reader.peek() !== undefined) {
      math.append(reader.row((token) => token === "}"));
      reader.next();
    }
  } catch {
    math.replaceChildren(text("mtext", tex));
  }
  return math;
}
