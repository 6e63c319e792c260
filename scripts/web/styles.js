// Temml's style sheet without what names a file: its font, for script letters and primes, and a picture of an arrow.

import { readFileSync } from "node:fs";

const text = readFileSync(process.argv[2], "utf8");
const rules = text
  .replace(/\/\*[^]*?\*\//g, "")
  .replace(/@font-face\s*\{[^}]*\}/, "")
  .replace(/[^{}]*\{[^{}]*font-family:\s*['"]?Temml[^}]*\}/g, "")
  .replace(/\.tml-cancelto\s*\{[^}]*\}/, "")
  .replace(/body\s*\{[^}]*\}/, "");
if (/url\(|Temml/.test(rules)) throw new Error("a rule names a file that is not bundled");
process.stdout.write(rules);
