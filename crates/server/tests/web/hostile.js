// Texts that a model could be made to say, for texts.js.

/** Scripts, styles and requests, by every way that Markdown and TeX offer. */
const HOSTILE = [
  "<script>window.pwned = 1</script>", "<img src=x onerror=window.pwned=1>", "<svg onload=window.pwned=1>",
  "<svg><script>window.pwned=1</script></svg>", "<iframe src=javascript:window.pwned=1>", "<body onload=window.pwned=1>",
  "<a href=\"javascript:window.pwned=1\">x</a>", "<details open ontoggle=window.pwned=1>", "<math><mtext><script>window.pwned=1</script>",
  "<style>*{background:url(https://evil.example)}</style>", "<link rel=stylesheet href=https://evil.example>",
  "<base href=https://evil.example>", "<meta http-equiv=refresh content=0;url=https://evil.example>",
  "<form action=https://evil.example><input>", "<object data=javascript:window.pwned=1>", "<embed src=javascript:window.pwned=1>",
  "<br onclick=window.pwned=1>", "<b onmouseover=window.pwned=1>x</b>", "<sub style=\"position:fixed\">x</sub>",
  "[x](javascript:window.pwned=1)", "[x](JaVaScRiPt:window.pwned=1)", "[x](java\nscript:window.pwned=1)",
  "[x](&#106;avascript:window.pwned=1)", "[x](&#x6A;avascript&colon;window.pwned=1)", "[x](\u0001javascript:window.pwned=1)",
  "[x](data:text/html,<script>window.pwned=1</script>)", "[x](vbscript:window.pwned=1)", "[x](file:///etc/passwd)",
  "[x](blob:https://evil.example/1)", "[x](//evil.example)", "[x](<javascript:window.pwned=1>)",
  "[x][y]\n\n[y]: javascript:window.pwned=1", "<javascript:window.pwned=1>", "![x](javascript:window.pwned=1)",
  "![x](https://evil.example/x.png)", "![x](data:image/svg+xml,<svg onload=window.pwned=1>)",
  "![\"onerror=\"window.pwned=1](x)", "[x](https://e.org \"onclick=window.pwned=1\")",
  "```\"><script>window.pwned=1</script>\nx\n```", "```js onload=window.pwned=1\nx\n```", "`<script>window.pwned=1</script>`",
  "| <img src=x onerror=window.pwned=1> |\n|--|\n| <script>window.pwned=1</script> |",
  "$\\href{javascript:window.pwned=1}{x}$", "$\\url{javascript:window.pwned=1}$", "$\\includegraphics{https://evil.example/x.png}$",
  "$\\class{x\" onclick=\"window.pwned=1}{x}$", "$\\style{background:url(https://evil.example)}{x}$", "$\\data{onclick=window.pwned=1}{x}$",
  "$\\text{<script>window.pwned=1</script>}$", "$<img src=x onerror=window.pwned=1>$", "$\\id{composer}{x}$",
  "$$\\begin{array}{c}<script>window.pwned=1</script>\\end{array}$$", "&lt;script&gt;window.pwned=1&lt;/script&gt;",
];

/** Texts on which patterns that look again and again take quadratic or cubic time: 60,000 characters or so of each. */
const PATHOLOGICAL = () => [
  "x" + "`".repeat(60000), "`x".repeat(30000), "``x`".repeat(15000),
  Array.from({ length: 340 }, (_, i) => "`".repeat(i + 1)).join(" "),
  "*".repeat(60000), "**a ".repeat(15000), "* a".repeat(20000), "*a **b ".repeat(8000), "_a __b ".repeat(8000),
  "~~a ".repeat(15000), "[".repeat(60000), "[](".repeat(20000), "[a](b \"".repeat(8000), "![".repeat(30000),
  "[](" + "a".repeat(60000), "\\(".repeat(30000), "\\[ x".repeat(15000), "\\[ x\n".repeat(12000), "$".repeat(10000),
  "$".repeat(59999), "$a ".repeat(20000), "$a\n".repeat(20000), "$$a ".repeat(15000), "$$a\n".repeat(15000), "$a$b".repeat(15000),
  "\\begin{align}\n".repeat(4000), " ".repeat(60000) + "x", "a" + "  ".repeat(30000) + "b", "# a" + " ".repeat(60000) + "b",
  "# " + "# ".repeat(30000) + "x", "- ".repeat(30000) + "x", "> ".repeat(30000), "1. ".repeat(20000), "> $$ a\n".repeat(8000),
  "- $$ a\n".repeat(8000), "a|b\n" + " ".repeat(60000) + "x", "a|b\n" + "-|".repeat(30000) + "x", "|".repeat(60000),
  "http://".repeat(8000), "https://" + ".".repeat(60000), "\\".repeat(60000), "a\\\n".repeat(20000), "```".repeat(20000),
  "```c\n" + "'\\".repeat(29000), "```js\n" + "a ".repeat(29000), "```js\n" + "/".repeat(39000), "```js\n" + "`${".repeat(12000),
  "```python\n" + "f'{".repeat(12000), "```rust\n" + "r#\"".repeat(12000), "```html\n" + "<a ".repeat(12000), "```bash\n" + "$(".repeat(19000),
  "```cpp\n" + "template<".repeat(4000), "```yaml\n" + "- a: ".repeat(7000), "```sql\n" + "'".repeat(39000), "```css\n" + "a{".repeat(19000),
  "$$" + "{".repeat(60000), "$" + "\\hat".repeat(240) + "$", "$$" + "\\hat".repeat(15000) + "$$", "$$" + "x^".repeat(30000) + "$$",
  ("$" + "x^".repeat(1900) + "$ ").repeat(15), "$$\\begin{matrix}" + "&".repeat(7000) + "\\end{matrix}$$", "$$" + "x+".repeat(3900) + "$$",
  "$$\\def\\a{\\b\\b}\\def\\b{\\c\\c}\\def\\c{\\a\\a}\\a$$", "$x$ ".repeat(15000), "$\\rule{9999999em}{9999999em}$ $\\Huge x$",
  "-\n".repeat(20000), "- a\n\n".repeat(10000), (" ".repeat(4) + "- a\n").repeat(8000), "*_".repeat(30000),
  "**_~~".repeat(12000), "*a_b`c[d".repeat(7000), "<br>".repeat(15000), "<sub>".repeat(12000), "<sub>a</sub>".repeat(5000),
  "|`a".repeat(15000), "| `a|b` ".repeat(7000), "[a]: b\n".repeat(8000), "[a]".repeat(20000) + "\n\n[a]: /x", "&amp;".repeat(12000),
  "<http://a".repeat(6000), "|a".repeat(200) + "\n" + "|-".repeat(200) + "\n" + ("|a".repeat(200) + "\n").repeat(150),
];
