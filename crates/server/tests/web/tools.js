// What functions.js and texts.js are written with.

const $ = (id) => document.getElementById(id);
const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function check(holds, what) {
  if (!holds) throw new Error(what);
}

function equal(found, wanted, what) {
  check(
    JSON.stringify(found) === JSON.stringify(wanted),
    `${what}: ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`,
  );
}

async function until(what, condition, ms = 20_000) {
  const end = performance.now() + ms;
  for (;;) {
    const value = await condition();
    if (value) return value;
    check(performance.now() < end, `never: ${what}\n${document.body.innerText.replace(/\s+/g, " ").slice(-1200)}`);
    await sleep(20);
  }
}

const answers = () => all(".message.assistant");
const running = () => $("send").getAttribute("aria-label") === "Stop";
const last = (selector) => all(selector).at(-1);
const tool = (article, label) => article.querySelector(`.tools [aria-label="${label}"]`);
const labelled = (root, text) => [...root.querySelectorAll("button")].find((made) => made.textContent.trim() === text);

async function fresh() {
  $("new").click();
  await until("an empty page", () => document.body.classList.contains("blank") && !$("input").value);
}

function write(text) {
  $("input").value = text;
  $("input").dispatchEvent(new Event("input"));
}

/** Says something and waits for the answer. */
async function say(text) {
  const before = answers().length;
  write(text);
  $("send").click();
  await until(`an answer to ${text}`, () => answers().length > before && !running());
}

function key(name, more = {}, target = document.activeElement) {
  target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true, ...more }));
}

async function menu(label) {
  $("more").click();
  const item = await until(`“${label}” in the menu`, () => labelled($("menu"), label));
  item.click();
}

const listed = () => all("#list .open .name").map((name) => name.textContent);
const entry = (title) => all("#list .open").find((made) => made.querySelector(".name").textContent === title);

async function go(title) {
  entry(title).click();
  await until(`${title} is open`, () => $("title").textContent === title && answers().length > 0);
}

/** Keeps the bodies of what is asked while `work` is done. `answer`, where given, answers in the server's place. */
async function asking(work, answer) {
  const real = window.fetch;
  const bodies = [];
  window.fetch = (address, options) => {
    if (options?.method === "POST") bodies.push(JSON.parse(options.body));
    return answer ? (answer(address, options) ?? real(address, options)) : real(address, options);
  };
  try {
    await work(bodies);
  } finally {
    window.fetch = real;
  }
  return bodies;
}

/** A stream that says these lines, a piece each, and then ends or breaks off. */
function streaming(lines, ends = true) {
  const bytes = new TextEncoder();
  const body = new ReadableStream({
    async start(control) {
      for (const line of lines) {
        if (typeof line === "number") await sleep(line);
        else control.enqueue(bytes.encode(line));
      }
      if (ends) control.close();
      else control.error(new TypeError("network error"));
    },
  });
  return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
}
const said = (content) => `data: ${JSON.stringify({ choices: [{ delta: { content } }] })}\n\n`;
const DONE = "data: [DONE]\n\n";

/** The text that `work` gives as a file to save. */
async function saved(work) {
  const real = URL.createObjectURL;
  let blob = null;
  const click = HTMLAnchorElement.prototype.click;
  URL.createObjectURL = (given) => {
    blob = given;
    return "blob:none";
  };
  HTMLAnchorElement.prototype.click = function () {
    blob.name = this.download;
  };
  try {
    await work();
    await until("a file to save", () => blob);
  } finally {
    URL.createObjectURL = real;
    HTMLAnchorElement.prototype.click = click;
  }
  return { name: blob.name, text: await blob.text() };
}

function transfer(...files) {
  const carried = new DataTransfer();
  files.forEach((file) => carried.items.add(file));
  return carried;
}

function pick(id, ...files) {
  $(id).files = transfer(...files).files;
  $(id).dispatchEvent(new Event("change"));
}

async function dot() {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: 8, height: 8 });
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(new File([blob], "dot.png", { type: "image/png" }))));
}

const visible = (element) =>
  element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;

/** Everything that one touches is at least 44 pixels high and wide, and has a name. */
function targets() {
  const touched = all("button, input:not(.task), select, summary, textarea").filter(visible);
  const small = touched.filter((element) => {
    const { width, height } = element.getBoundingClientRect();
    return width < 43.9 || height < 43.9;
  });
  equal(
    small.map((element) => element.outerHTML.slice(0, 90)),
    [],
    "too small to touch",
  );
  const named = (element) => element.textContent.trim() || element.getAttribute("aria-label") || element.labels?.length;
  equal(
    touched.filter((element) => !named(element)).map((element) => element.outerHTML),
    [],
    "without a name",
  );
}

/** Nothing is wider than the window. */
function fits() {
  const box = $("scroll");
  check(
    document.documentElement.scrollWidth <= innerWidth,
    `the page is ${document.documentElement.scrollWidth} wide in ${innerWidth}`,
  );
  check(box.scrollWidth <= box.clientWidth + 1, `the messages are ${box.scrollWidth} wide in ${box.clientWidth}`);
}

const module = (name) => import(new URL(name, document.baseURI).href);

function leads(address) {
  return /^(https?:|mailto:)/i.test(address);
}
