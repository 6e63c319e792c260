// Texts of models: what they look like, what they may not do, and what they cost.

const texts = {
  /** What people found wrong in Markdown and mathematics. */
  async markdown() {
    const { render } = await module("markdown.js");
    const shown = (text) => {
      const box = document.createElement("div");
      box.append(render(text));
      return box;
    };
    const html = (text) => shown(text).innerHTML.replace(/\n/g, "");
    equal(html("***x***"), "<p><em><strong>x</strong></em></p>", "***x***");
    equal(html("one\ntwo"), "<p>one<br>two</p>", "a single newline");
    equal(html("a<br>b<br/>c"), "<p>a<br>b<br>c</p>", "<br>");
    equal(html("H<sub>2</sub>O <b>x"), "<p>H<sub>2</sub>O <b>x</b></p>", "tags");
    equal(html("a **b *c* d** \\*e\\*  \nf"), "<p>a <strong>b <em>c</em> d</strong> *e*<br>f</p>", "emphasis");
    equal(html("~~gone~~"), "<p><s>gone</s></p>", "struck");
    equal(html("a ``b ` c`` and `` d"), "<p>a <code>b ` c</code> and `` d</p>", "code");
    const cells = [...shown("| a | b |\n|---|---|\n| `x|y` | `p\\|q` |").querySelectorAll("td")].map(
      (cell) => cell.textContent,
    );
    equal(cells, ["x|y", "p|q"], "| in code in a table");
    equal(
      shown("```\n| `a|b` |\n```").querySelector("code").textContent,
      "| `a|b` |\n",
      "and in code that is no table",
    );
    equal(shown("- [x] a\n- [ ] b").querySelectorAll("input:disabled").length, 2, "tasks");
    equal(shown("$\\xrightarrow{f}$").querySelectorAll("math mover").length > 0, true, "\\xrightarrow");
    equal(shown("\\begin{align}\na &= b \\\\\nc &= d\n\\end{align}").querySelectorAll("mtr").length, 2, "align alone");
    equal(shown("so\n\\[\nx\n\\]\nand").querySelectorAll("p, .display").length, 3, "\\[ after a line");
    equal(shown("- a\n\n  $$\n  x\n  $$").querySelectorAll("li math[display=block]").length, 1, "in a list");
    equal(shown("$5 and $10, \\(x\\) and $y$").querySelectorAll("math").length, 2, "dollars");
    equal(shown("costs $$ much").textContent, "costs $$ much", "$$ that is none");
    equal(shown("$\\constructor$ $\\unknown{x}$").textContent, "$\\constructor$ $\\unknown{x}$", "what is no command");
    equal(shown("```constructor\nx\n```").querySelector("code").innerHTML, "x\n", "what is no language");
    equal(shown("![cat](https://e.org/cat.png)").querySelectorAll("img").length, 0, "no picture of elsewhere");
    equal(shown("https://e.org/a_b").querySelector("a").href, "https://e.org/a_b", "a bare link");
  },

  /** None of these makes an element, attribute or address that does something. */
  async hostile() {
    const { render } = await module("markdown.js");
    const bad = HOSTILE.filter((text) => {
      const box = document.createElement("div");
      document.body.append(box);
      box.append(render(text));
      const elements = [...box.querySelectorAll("*")].filter((element) => !element.closest(".copy"));
      const known = elements.every(
        (element) =>
          !/^(script|iframe|object|embed|svg|img|style|link|base|form|meta|video|audio|template|annotation-xml|maction)$/i.test(
            element.localName,
          ),
      );
      const attributes = elements.flatMap((element) => [...element.attributes]);
      const quiet = attributes.every(
        ({ name, value }) => !/^on|^src|^xlink|^srcdoc|^formaction/i.test(name) && (name !== "href" || leads(value)),
      );
      box.remove();
      return !known || !quiet;
    });
    equal(bad, [], "does something");
    await sleep(50);
    check(window.pwned === undefined, "a script ran");
  },

  async pathological() {
    const { render } = await module("markdown.js");
    const { Growing } = await module("render.js");
    const slow = [];
    let most = 0;
    for (const text of PATHOLOGICAL()) {
      let begin = performance.now();
      const box = document.createElement("div");
      box.append(render(text));
      const whole = performance.now() - begin;
      begin = performance.now();
      // Formulas that are not closed are another way, while a text grows.
      if (/[$\\]/.test(text)) new Growing(box).update(text);
      const part = performance.now() - begin;
      most = Math.max(most, whole, part);
      if (whole > 6000 || part > 6000 || (!box.hasChildNodes() && text.trim() && !/^\[a\]: b/.test(text))) {
        slow.push(`${text.slice(0, 20)}: ${Math.round(whole)} ms, ${Math.round(part)} ms`);
      }
    }
    equal(slow, [], "slow");
    // Deep trees are laid out by recursion: this one must not end the page.
    const box = document.createElement("div");
    document.body.append(box);
    for (const text of [
      "*a ".repeat(5000) + "b*".repeat(5000),
      "> ".repeat(5000) + "x",
      "<sub>".repeat(5000) + "x",
      "$" + "\\frac{1}{".repeat(2000) + "}".repeat(2000) + "$",
    ])
      box.append(render(text));
    check(box.offsetHeight > 0, "it is laid out");
    box.remove();
    return { slowest_ms: Math.round(most) };
  },

  /** A long answer, token by token: the same as rendered at once, in time that grows with its length. */
  async long(tokens) {
    const { render } = await module("markdown.js");
    const { Growing } = await module("render.js");
    const section = (at) =>
      `## Part ${at}\n\nSome *words* with $x_${at}$ and \`code\`.\n\n- one\n- two\n\n\`\`\`js\nlet a = ${at};\n\`\`\`\n\n| a | b |\n|--|--|\n| 1 | 2 |\n\n$$\n\\sum_{i=0}^{${at}} i\n$$\n\n`;
    let text = "";
    for (let at = 0; text.length < tokens * 4; at++) text += section(at);
    const box = document.createElement("div");
    box.className = "md";
    document.body.append(box);
    const grown = new Growing(box);
    let most = 0,
      sum = 0;
    for (let end = 4; end <= text.length; end += 4) {
      const begin = performance.now();
      grown.next_ms = 0;
      grown.update(text.slice(0, end));
      const took = performance.now() - begin;
      sum += took;
      most = Math.max(most, took);
    }
    grown.next_ms = 0;
    grown.update(`${text}\n`);
    const wanted = document.createElement("div");
    wanted.append(render(text));
    const same = wanted.innerHTML === box.innerHTML;
    box.remove();
    check(same, "what has grown is what is rendered at once");
    return { tokens, ms: Math.round(sum), most_ms: Math.round(most) };
  },

  /** One block that goes on and on leaves the page time. */
  async long_block(tokens) {
    const { Growing } = await module("render.js");
    const result = {};
    for (const [name, begin, more] of [
      ["list", "", "- an item of a list\n"],
      ["code", "```js\n", "let a = 1; // and\n"],
      ["paragraph", "", "some *words* of it "],
      ["table", "| a | b |\n|--|--|\n", "| 1 | 2 |\n"],
    ]) {
      const text = begin + more.repeat((tokens * 4) / more.length);
      const grown = new Growing(document.createElement("div"));
      let busy = 0,
        now = 0;
      // 1000 tokens a second, and a frame every 20 ms or when the last is done.
      while (now * 4 < text.length) {
        const before = performance.now();
        grown.update(text.slice(0, now * 4), now);
        const took = performance.now() - before;
        busy += took;
        now += Math.max(20, took);
      }
      result[name] = Math.round((busy / now) * 100);
    }
    return result;
  },
};
