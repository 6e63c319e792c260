// Steps of what needs real keys, reloads, two tabs or another server: their order is in browser.rs.

const steps = {
  // ---- two tabs

  listed,
  async send_only(text) {
    const before = answers().length;
    write(text);
    $("send").click();
    await until("it begins", () => answers()[before]?.querySelector(".text").textContent.length > 5);
  },
  async shows(text) {
    return until(`“${text}” is shown`, () => $("log").textContent.includes(text));
  },
  async lists(title) {
    return until(`“${title}” is listed`, () => entry(title));
  },
  async lists_not(title) {
    return until(`“${title}” is not listed`, () => !entry(title));
  },
  async opens(title) {
    await until(`“${title}” is listed`, () => entry(title));
    entry(title).click();
    await until(`${title} is open`, () => $("title").textContent === title && all(".message").length > 0);
  },
  async grows() {
    const length = await until("an answer comes", () => running() && answers().at(-1).textContent.length);
    await until("it grows", () => answers().at(-1).textContent.length > length + 20);
  },
  /** Says something at a time, as somebody else does in another tab. */
  send_at({ text, time }) {
    setTimeout(async () => {
      write(text);
      $("send").click();
      // Where the other was earlier its answer is waited for, or stopped, first.
      while ($("input").value) {
        await until("it can be sent", () => !running());
        $("send").click();
      }
    }, time - Date.now());
  },
  async is_said(text) {
    await until(
      `“${text}” is said`,
      () => $("log").textContent.includes(text) || one(".user .count, .assistant .count"),
    );
  },
  async everything_said() {
    const done = (request) =>
      new Promise((resolve, reject) => {
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
      });
    const database = await done(indexedDB.open("wels"));
    const messages = await done(database.transaction("messages").objectStore("messages").getAll());
    database.close();
    return messages.map(({ content }) => content).filter((content) => content.length < 40);
  },
  async removes() {
    const title = "From the first";
    if ($("title").textContent !== title) await go(title);
    await menu("Delete");
    await until("it is gone", () => !entry(title));
  },
  async stops() {
    $("send").click();
    await until("it stops", () => !running());
  },
  async stopped() {
    await until("it stops", () => !running() && last(".notices").textContent === "You stopped this answer.");
  },
  async broken_off() {
    await until("why it ends", () => !running() && /closed|broke off/.test(last(".error p")?.textContent));
    check(last(".assistant").textContent.length > 10, "what had come is there");
  },
  async cut_off() {
    const words = await until("why there is no more", () => !running() && last(".error p")?.textContent);
    check(!/fetch|TypeError|network/i.test(words) && labelled(last(".error"), "Try again"), words);
    check(last(".assistant .text").textContent.includes("and"), `what had come is there: ${words}`);
  },
  async complete() {
    await until("the answer is complete", () => !running() && all(".numbers").length > 0);
  },
  said: () => all(".message.user .text").map((text) => text.textContent),
  versions: () => last(".user .count")?.textContent ?? "1/1",
  say,

  // ---- keys

  async asks_for_key() {
    await until("it asks", () => document.body.classList.contains("locked"));
    check(visible($("key-field")) && !one("dialog[open]"), "in the page, and not by a dialog that cannot be left");
    for (const words of ["wels serve", "wels keys add NAME", "--no-key"])
      check($("key-help").textContent.includes(words), words);
    targets();
    fits();
  },
  async enters_key(value) {
    $("key-field").value = value;
    labelled($("key-form"), "Use this key").click();
  },
  async key_refused() {
    await until("why", () => $("key-error").textContent.length > 5);
    check(document.activeElement === $("key-field"), "the focus");
  },
  async key_taken() {
    await until("the model is named", () => !document.body.classList.contains("locked") && $("model").value === "tiny");
  },
  async offered(answer) {
    await until("the question", () => $("ask").open);
    check($("ask").textContent.includes("another API key"), $("ask").textContent);
    targets();
    $(`ask-${answer}`).click();
    await until("it closes", () => !$("ask").open);
  },
  stored_key: () => JSON.parse(localStorage.getItem("wels.settings"))?.key ?? "",

  // ---- the page without a server

  async kept() {
    const registration = await navigator.serviceWorker.ready;
    await until("the worker serves", () => registration.active?.state === "activated");
    await until("the page is kept", async () => (await caches.match("./")) && caches.match("vendor/renderers.js"));
  },
  async without_server() {
    await until("the banner", () => !$("banner").hidden);
    check($("banner-text").textContent.startsWith("The server does not answer."), $("banner-text").textContent);
  },
  async old_list() {
    const old = [
      {
        id: "old-1",
        title: "From before",
        messages: [
          { role: "user", content: "Old?" },
          { role: "assistant", content: "Yes.", reasoning: "" },
        ],
      },
    ];
    localStorage.setItem("wels.conversations", JSON.stringify(old));
  },

  // ---- axe-core, which the test has put into the page

  async axe() {
    const { violations } = await window.axe.run(document, { resultTypes: ["violations"] });
    return violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(
        ({ id, nodes }) =>
          `${id}: ${nodes
            .map(({ html, any }) => `${html.slice(0, 120)} ${any[0]?.message ?? ""}`)
            .slice(0, 3)
            .join(" | ")}`,
      );
  },
  async opens_thinking() {
    one(".think summary").click();
    await until("it is shown", () => one(".think .body").textContent);
  },
  async opens_dialog(name) {
    if (name === "settings") $("open-settings").click();
    if (name === "keys") $("open-keys").click();
    if (name === "options") await menu("Title and system prompt");
    if (name === "menu") $("more").click();
    await sleep(50);
  },
  closes_dialogs() {
    all("dialog[open]").forEach((dialog) => dialog.close());
    $("menu").hidePopover();
  },
  async opens_side() {
    $("open-side").click();
    await sleep(250);
  },
  forbids_html() {
    let thrown = "";
    try {
      document.createElement("div").innerHTML = "<b>x</b>";
    } catch (error) {
      thrown = error.name;
    }
    equal(thrown, "TypeError", "text that is to be read as HTML");
  },
};
