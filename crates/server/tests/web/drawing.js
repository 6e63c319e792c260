// What the page does with pictures where a model sees and draws them: a server with `tiny`, of text, and `janus`.

const pictures = () => all(".pictures figure.done img").filter((image) => image.complete && image.naturalWidth > 0);
const seeds = () => all(".pictures figure.done figcaption").map((caption) => caption.textContent);
const pressed = () => $("draw").getAttribute("aria-pressed") === "true";

function set(id, value) {
  $(id).value = value;
  $(id).dispatchEvent(new Event("input"));
}

/** A picture of a colour, as a camera or another page gives it. */
async function photo(name, type, width = 2400, height = 1200) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  for (let x = 0; x < width; x += 8) {
    context.fillStyle = `hsl(${(x * 137) % 360} 70% 50%)`;
    context.fillRect(x, 0, 8, height);
  }
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(new File([blob], name, { type })), type));
}

const drawing = {
  /** A person finds how to draw, and in what ways. */
  async offers() {
    await until("the models", () => visible($("draw")));
    equal(all(".suggestion strong").at(-1).textContent, "Draw", "it is suggested");
    check(!pressed() && visible($("attach")) && !visible($("how")), "at first one talks");
    all(".suggestion").at(-1).click();
    check(pressed() && $("input").placeholder === "Describe a picture", "the suggestion draws");
    equal(
      [...$("model").options].map(({ value }) => value),
      ["janus"],
      "by a model that does",
    );
    check(!visible($("attach")) && visible($("how")), "of words alone");
    $("how").click();
    await until("how", () => visible($("drawing")) && document.activeElement === $("d-draw_n"));
    targets();
    set("d-draw_n", "11");
    equal($("de-draw_n").textContent, "The number of pictures is from 1 to 10.", "what is wrong");
    set("d-draw_seed", "1.5");
    equal($("de-draw_seed").textContent, "The seed is a whole number.", "what is wrong");
    set("d-draw_n", "3");
    set("d-draw_seed", "7");
    equal([$("de-draw_n").textContent, $("de-draw_seed").textContent], ["", ""], "nothing is wrong");
  },
  closes_how() {
    $("drawing").hidePopover();
    check(!visible($("drawing")), "it closes");
  },
  async begins() {
    const [body] = await asking(async (bodies) => {
      write("A red circle left of a blue square.");
      $("send").click();
      await until("it is asked", () => bodies.length);
    });
    const { model, prompt, n, cfg, seed, stream } = body;
    equal([model, n, cfg, seed, stream], ["janus", 3, 5, 7, true], "what is asked");
    equal(prompt, "A red circle left of a blue square.", "of what");
    equal(one(".user .asked").textContent, "Draw 3 pictures · seed 7", "it is said");
    equal(all(".pictures figure").length, 3, "each has its place");
    const bar = await until("how far it is", () => one(".progress progress[value]"));
    check(bar.value > 0 && bar.value < 1 && /^\d+%$/.test(one(".percent").textContent), one(".percent").textContent);
    await until("unfinished pictures", () => all(".pictures figure:not(.done) img[src]").length === 3);
    check(running() && $("state").textContent === "Drawing 3 pictures…", $("state").textContent);
    equal(one(".message.assistant").getAttribute("aria-busy"), "true", "for those who listen");
  },
  async ends() {
    await until("three pictures", () => !running() && pictures().length === 3);
    equal(seeds(), ["Seed 7", "Seed 8", "Seed 9"], "each says how it is drawn again");
    equal(new Set(pictures().map(({ src }) => src)).size, 3, "they differ");
    check(
      pictures().every(({ alt }) => alt === "Drawn: A red circle left of a blue square."),
      pictures()[0].alt,
    );
    check(!visible(one(".progress")) && /48 tokens/.test(one(".numbers").textContent), one(".numbers").textContent);
    targets();
    fits();
  },
  /** The same pictures are there when the page is opened again. */
  async kept_pictures() {
    await until("the pictures", () => pictures().length === 3);
    equal(seeds(), ["Seed 7", "Seed 8", "Seed 9"], "with their seeds");
    check(pressed(), "the conversation still draws");
  },
  async draws_again() {
    const before = pictures().map(({ src }) => src);
    const [body] = await asking(async () => {
      labelled(one(".assistant"), "Draw again").click();
      await until("another version", () => one(".assistant .count")?.textContent === "2/2");
      await until("its pictures", () => !running() && pictures().length === 3);
    });
    check(body.seed === undefined && body.prompt.startsWith("A red circle"), "with another seed");
    check(
      pictures().every(({ src }) => !before.includes(src)),
      "other pictures",
    );
    tool(one(".assistant"), "Earlier version").click();
    await until("the first ones", () => seeds()[0] === "Seed 7" && pictures().length === 3);
    equal(
      pictures().map(({ src }) => src),
      before,
      "are still there",
    );
    labelled(one(".assistant"), "Change the words").click();
    const area = await until("the words", () => one(".editor textarea"));
    equal(area.value, "A red circle left of a blue square.", "that were drawn");
    area.value = "A blue circle.";
    labelled(one(".editor"), "Send").click();
    await until("what they draw", () => one(".user .count")?.textContent === "2/2" && !running());
    await until("in its place", () => pictures().length === 3 && seeds()[0] === "Seed 7");
    check(
      pictures().every(({ src }) => !before.includes(src)),
      "other words, other pictures",
    );
  },
  async saves() {
    const file = await saved(() => labelled(one("figure.done"), "Download").click());
    equal(file.name, "a-blue-circle-7.png", "its name");
    check(file.text.includes("PNG") && file.text.includes('"seed":7'), "and it says how it was drawn");
  },
  /** `/draw`, and a drawing that is stopped. */
  async stops_drawing() {
    await fresh();
    write("/draw ");
    check(pressed() && $("input").value === "", "the command begins to draw");
    set("d-draw_n", "10");
    write("Stripes");
    $("send").click();
    await until("it draws", () => one(".progress progress[value]"));
    $("send").click();
    await until("it ends", () => !running());
    set("d-draw_n", "3");
    equal(last(".notices").textContent, "You stopped this drawing.", "what is said");
    check(!visible(one(".progress")) && labelled(last(".assistant"), "Draw again"), "it can be drawn again");
    $("draw").click();
    check(!pressed(), "and one talks again");
  },
  /** By button, by paste and by drop; made small, and of its pixels alone. */
  async attaches() {
    await fresh();
    $("draw").click();
    pick("pick", await photo("photo.jpg", "image/jpeg"));
    await until("one picture", () => all("#files img").length === 1);
    check(!pressed(), "who shows a picture asks about it");
    const paste = new Event("paste", { bubbles: true, cancelable: true });
    Object.defineProperty(paste, "clipboardData", { value: transfer(await photo("shot.png", "image/png", 40, 30)) });
    $("input").dispatchEvent(paste);
    await until("two pictures", () => all("#files img").length === 2);
    const dataTransfer = transfer(await photo("drop.webp", "image/webp", 64, 64));
    document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
    await until("three pictures", () => all("#files img").length === 3);
    const sizes = all("#files img").map((image) => [image.naturalWidth, image.naturalHeight]);
    equal(
      sizes.slice(1),
      [
        [40, 30],
        [64, 64],
      ],
      "small ones as they are",
    );
    check(sizes[0][0] <= 1024 && Math.abs(sizes[0][0] - 2 * sizes[0][1]) <= 1, `large ones smaller: ${sizes[0]}`);
    check(
      all("#files img").every(({ src }) => src.length < 250_000),
      "and small enough for a request with many",
    );
  },
  /** What sees no picture is not asked about one. */
  async sees_none() {
    await until("who reads texts only", () => visible($("blind")));
    check($("blind").textContent.startsWith("tiny reads texts only and sees no pictures."), $("blind").textContent);
    write("What is this?");
    const bodies = await asking(() => $("send").click());
    equal(bodies, [], "nothing is sent");
    equal(document.activeElement.textContent, "Ask janus", "but what can be done about it is at hand");
    targets();
    fits();
  },
  async asks_another() {
    labelled($("blind"), "Ask janus").click();
    check(!visible($("blind")) && $("model").value === "janus", "another model");
    const [body] = await asking(() => say("What is this?"));
    const kinds = body.messages[0].content.map(({ type }) => type);
    equal([body.model, ...kinds], ["janus", "image_url", "image_url", "image_url", "text"], "what is sent");
    check(!one(".error"), one(".error")?.textContent);
    await until("they are shown", () => all(".user img.picture").every(({ naturalWidth }) => naturalWidth > 0));
    equal(all(".user img.picture").length, 3, "all of them");
  },
  /** A model of text goes on with what was said, and is told that there were pictures. */
  async goes_on_blind() {
    $("model").value = "tiny";
    $("model").dispatchEvent(new Event("change"));
    const [body] = await asking(() => say("Go on"));
    const [first] = body.messages;
    check(typeof first.content === "string" && first.content.includes("cannot see: photo.jpg"), first.content);
    check(!one(".error"), one(".error")?.textContent);
  },
  /** A drawn picture is put to the next question. */
  async asks_about_drawn() {
    await go("A red circle left of a blue square.");
    await until("the pictures", () => pictures().length === 3);
    labelled(one("figure.done"), "Ask about it").click();
    await until("it is attached", () => one("#files img")?.naturalWidth === 16);
    check(!pressed(), "to a question");
    if (visible($("blind"))) labelled($("blind"), "Ask janus").click();
    const [body] = await asking(() => say("Is it red?"));
    equal(
      body.messages.map(({ role }) => role),
      ["user"],
      "what was drawn before is not part of it",
    );
    equal(body.messages[0].content[0].type, "image_url", "but the picture is");
    await until("it is shown", () => last(".user img.picture")?.naturalWidth === 16);
  },
  /** What the server says of a picture is shown. */
  async refused_picture() {
    await fresh();
    $("model").value = "janus";
    $("model").dispatchEvent(new Event("change"));
    pick("pick", await dot());
    await until("a picture", () => one("#files img"));
    const refusal = JSON.stringify({ error: { message: "The picture is animated." } });
    await asking(
      async () => {
        await say("What is it?");
        equal(one(".error p").textContent, "The picture is animated.", "why");
      },
      (address) => (address.includes("chat") ? Promise.resolve(new Response(refusal, { status: 400 })) : null),
    );
    labelled(one(".error"), "Send without pictures").click();
    await until("an answer", () => !running() && !one(".error") && one(".numbers"));
    equal(one(".user .count").textContent, "2/2", "as another version");
  },
  /** A server that fails in the middle says so, and what was finished stays. */
  async breaks_off() {
    await fresh();
    $("draw").click();
    const png = one("canvas") ?? document.createElement("canvas");
    const b64_json = png.toDataURL().split(",")[1];
    const usage = { input_tokens: 3, output_tokens: 16, cost_exact: "0" };
    const event = { type: "image_generation.completed", index: 0, seed: 3, b64_json, usage };
    const lines = [": drawing: 16 of 48 codes\n\n", 50, `data: ${JSON.stringify(event)}\n\n`, 300];
    await asking(
      async () => {
        await say("Half of it");
      },
      (address) => (address.includes("images") ? streaming(lines, false) : null),
    );
    check(/broke off/.test(one(".error p").textContent), one(".error p").textContent);
    equal(seeds(), ["Seed 3"], "what was finished");
    $("draw").click();
  },
  // ---- in two tabs

  async draws_for_others({ text, n }) {
    await fresh();
    if (!pressed()) $("draw").click();
    set("d-draw_n", String(n));
    write(text);
    $("send").click();
    await until("it draws", () => one(".progress progress[value]"));
  },
  async watches(text) {
    await until("it is listed", () => entry(text));
    entry(text).click();
    await until("it is shown", () => all(".pictures figure").length === 3);
    await until("its pictures", () => pictures().length === 3 && !visible(one(".progress")));
    equal(seeds(), ["Seed 7", "Seed 8", "Seed 9"], "with their seeds");
  },
  async stops_elsewhere(text) {
    await until("it is listed", () => entry(text));
    entry(text).click();
    await until("how far it is", () => running() && one(".progress progress[value]"));
    $("send").click();
    await until("it ends", () => !running() && last(".notices").textContent === "You stopped this drawing.");
  },
  async exports_pictures() {
    await go("A red circle left of a blue square.");
    const json = await saved(() => menu("Export as JSON"));
    const data = JSON.parse(json.text);
    data.conversations[0].id += "x";
    data.conversations[0].title = "Drawn elsewhere";
    const renamed = JSON.stringify(data)
      .replace(/"id":"(\w+)"/g, '"id":"$1i"')
      .replace(/"parent":"(?!root)(\w+)"/g, '"parent":"$1i"')
      .replace(/"selected":\{[^}]*\}/g, '"selected":{}');
    pick("import-file", new File([renamed], "export.json", { type: "application/json" }));
    await until("it is imported", () => entry("Drawn elsewhere"));
    await go("Drawn elsewhere");
    await until("with its pictures", () => pictures().length === 3 && seeds()[0] === "Seed 7");
  },
};
