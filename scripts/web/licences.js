// The licences of what is bundled, one after the other: the packages of package.json and those that they need.

import { readFileSync, readdirSync } from "node:fs";

const read = (path) => JSON.parse(readFileSync(path, "utf8"));
const names = new Set();

function add(name) {
  if (names.has(name)) return;
  names.add(name);
  Object.keys(read(`node_modules/${name}/package.json`).dependencies ?? {}).forEach(add);
}

Object.keys(read("package.json").dependencies).forEach(add);
names.delete("argparse"); // of markdown-it's command line
const parts = [...names].sort().map((name) => {
  const { version, license } = read(`node_modules/${name}/package.json`);
  const file = readdirSync(`node_modules/${name}`).find((file) => /^licen[cs]e/i.test(file));
  if (!file) throw new Error(`${name} has no licence`);
  return `${name} ${version} (${license})\n\n${readFileSync(`node_modules/${name}/${file}`, "utf8").trim()}\n`;
});
process.stdout.write(parts.join(`\n${"-".repeat(80)}\n\n`));
