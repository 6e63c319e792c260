// What the page can do, as functions by name: browser.rs evaluates the files of this folder in Chromium and in Firefox,
// and calls one function. Each throws what is not as it should be.

const functions = {
  targets,
  fits,
  running,
  write: (text) => {
    $("input").focus();
    write(text);
  },
  fresh,

  async ready() {
    await until("the page is ready", () => document.documentElement.dataset.ready === "yes");
  },

  async empty() {
    await until("the model is named", () => $("model").value === "tiny");
    equal(all(".suggestion").length, 4, "suggestions");
    one(".suggestion").click();
    check(
      $("input").value.length > 20 && document.activeElement === $("input"),
      "a suggestion is written into the field",
    );
    check(!$("send").disabled, "and can be sent");
    write("");
    check($("send").disabled, "nothing cannot be sent");
    // Whoever wants less to move gets that: the tests' browsers do.
    check(matchMedia("(prefers-reduced-motion: reduce)").matches, "motion");
    equal(getComputedStyle($("side")).transitionDuration, "0s", "what moves");
    targets();
    fits();
  },

  /** The answer of the scripted engine to a first question. */
  async answer() {
    equal($("title").textContent, "What is a wels?", "the title");
    equal(listed()[0], "What is a wels?", "the list");
    const wanted = {
      h1: "Catfish",
      strong: "large",
      em: "wels",
      "p > code": "Silurus glanis",
      "ol > li ul li": "seldom more",
      ".code .hl-keyword": "fn",
      ".code .hl-string": '"wels"',
      ".code .hl-comment": "// a comment",
      td: "1 m",
      "math[display=block] msqrt": "π",
    };
    for (const [selector, text] of Object.entries(wanted)) {
      equal(one(`.assistant > .md ${selector}`)?.textContent, text, selector);
    }
    equal(one(".assistant td").className, "right", "the side of a column");
    equal(
      all(".assistant a").map((link) => `${link.href} ${link.textContent} ${link.rel}`),
      ["https://example.org/ a link noopener noreferrer nofollow"],
      "links",
    );
    equal(all(".assistant img, .assistant script").length, 0, "what is not text");
    check(one(".assistant > .md").textContent.includes("onerror"), "HTML is text");
    const think = one(".think");
    check(
      !think.open && /^Thought for \d+ s$/.test(think.querySelector("summary").textContent),
      think.querySelector("summary").textContent,
    );
    think.querySelector("summary").click();
    await until("the thinking is shown", () =>
      think.querySelector(".body").textContent.includes("Let me think about fish"),
    );
    think.querySelector("summary").click();
    check(
      /\d+ \+ \d+ tokens · [\d.]+ tokens\/s · .* USD/.test(one(".numbers").textContent),
      one(".numbers").textContent,
    );
    check(/^[\d,]+ tokens in 1 answer · .* USD$/.test($("totals").textContent), $("totals").textContent);
    await until("it is said", () => $("status").textContent === "The answer is complete.");
    targets();
    fits();
  },

  async copies() {
    const taken = [];
    Object.defineProperty(navigator, "clipboard", {
      configurable: true,
      value: { writeText: async (text) => taken.push(text) },
    });
    tool(answers()[0], "Copy").click();
    one(".assistant .code .copy").click();
    tool(one(".message.user"), "Copy").click();
    key("l", { ctrlKey: true, shiftKey: true });
    await until("four copies", () => taken.length === 4);
    check(taken[0].includes("# Catfish") && taken[3] === taken[0], "the message");
    equal(
      taken[1],
      'fn main() {\n    let fish = "wels"; // a comment\n    println!("{fish} {}", 42);\n}\n',
      "the code",
    );
    equal(taken[2], "What is a wels?", "what was said");
    await until("it is said", () => $("status").textContent === "Copied.");
  },

  /** Versions by asking again and by editing. */
  async branches() {
    await fresh();
    await say("First question");
    tool(answers()[0], "Answer again").click();
    await until("a second answer", () => !running() && one(".assistant .count")?.textContent === "2/2");
    tool(one(".message.user"), "Edit").click();
    const area = one(".editor textarea");
    key("Escape", {}, area);
    check(
      !one(".editor") && one(".user .text").textContent === "First question",
      "Escape leaves the message as it was",
    );
    tool(one(".message.user"), "Edit").click();
    one(".editor textarea").value = "Second question";
    labelled(one(".editor"), "Send").click();
    await until(
      "another question",
      () => !running() && one(".user .count")?.textContent === "2/2" && answers().length === 1,
    );
    equal(one(".user .text").textContent, "Second question", "the edited one");
    check(!one(".assistant .count"), "it has one answer");
    one('.user [aria-label="Earlier version"]').click();
    await until("the first question", () => one(".user .text").textContent === "First question");
    equal(one(".assistant .count").textContent, "2/2", "with its answers");
    one('.assistant [aria-label="Earlier version"]').click();
    await until("the first answer", () => one(".assistant .count").textContent === "1/2");
    check(one('.assistant [aria-label="Earlier version"]').disabled, "there is none before it");
    await say("Go on");
    equal(all(".message").length, 4, "it goes on from there");
    check($("totals").textContent.includes("4 answers"), $("totals").textContent);
  },

  branches_again() {
    equal(
      all(".message.user .text").map((text) => text.textContent),
      ["First question", "Go on"],
      "the versions that were chosen",
    );
    equal([one(".user .count").textContent, one(".assistant .count").textContent], ["1/2", "1/2"], "versions");
  },

  /** Answers go on while one looks elsewhere, and say so in the list. */
  async background() {
    await fresh();
    write("Something endless here");
    $("send").click();
    await until("it begins", () => answers()[0]?.textContent.length > 40);
    await fresh();
    check(!running(), "another conversation can be asked");
    equal($("status").textContent, "", "nothing is said of it here");
    await say("In the meantime");
    await until("this one is complete", () => $("status").textContent === "The answer is complete.");
    $("status").textContent = "";
    const mark = () => entry("Something endless here").querySelector(".mark");
    equal(mark()?.getAttribute("aria-label"), "An answer is coming", "the mark");
    await go("Something endless here");
    check(running(), "it still comes");
    const length = answers()[0].textContent.length;
    await until("it has grown", () => answers()[0].textContent.length > length);
    check($("status").textContent !== "The answer is complete.", "nothing is complete here");
    $("send").click();
    await until("it stops", () => !running());
    equal(one(".notices").textContent, "You stopped this answer.", "what is said");
    check(!one(".error") && !mark(), "it is no error");
  },

  async unseen() {
    await fresh();
    write("Tell me later");
    $("send").click();
    await until("it begins", () => answers()[0]?.querySelector(".text").textContent.length > 5);
    await fresh();
    await until("it is new", () => entry("Tell me later").querySelector(".mark.unseen"));
    await go("Tell me later");
    await until("it was seen", () => !entry("Tell me later").querySelector(".mark"));
  },

  /** What was typed and attached stays where it was. */
  async drafts() {
    await fresh();
    write("Half a thought");
    pick("pick", new File(["x"], "x.txt"));
    await until("a file", () => all("#files li").length === 1);
    await go("What is a wels?");
    equal([$("input").value, $("files").hidden], ["", true], "another conversation has its own");
    $("new").click();
    await until("it is there again", () => $("input").value === "Half a thought" && all("#files li").length === 1);
    one("#files button").click();
    write("");
  },

  async search() {
    await fresh();
    await say("Where do I find the needle of Cleopatra?");
    await fresh();
    $("search").value = "CLEOPATRA needle";
    $("search").dispatchEvent(new Event("input"));
    const found = await until("results", () => all("#list .snippet").length === 1 && one("#list .snippet"));
    equal(one("#list .group").textContent, "2 results", "the title and the text");
    check(found.querySelector("mark").textContent === "Cleopatra", "what was found is marked");
    found.closest("button").click();
    await until("it is opened", () => one(".message.found .text")?.textContent.includes("Cleopatra"));
    $("search").value = "there is no such thing";
    $("search").dispatchEvent(new Event("input"));
    await until("nothing", () => one("#list .group").textContent === "Nothing found");
    $("search").focus();
    key("Escape");
    await until("the list again", () => listed().length > 2 && !$("search").value);
  },

  /** A title, a system prompt, a model and an effort of its own. */
  async options() {
    await fresh();
    await menu("Title and system prompt");
    await until("the dialog", () => $("options").open);
    targets();
    $("o-system").value = "Speak like a fish.";
    labelled($("options"), "Save").click();
    $("model").value = "tiny-2";
    $("model").dispatchEvent(new Event("change"));
    $("effort").value = "low";
    $("effort").dispatchEvent(new Event("change"));
    const [body] = await asking(() => say("Optional"));
    equal(
      body.messages,
      [
        { role: "system", content: "Speak like a fish." },
        { role: "user", content: "Optional" },
      ],
      "messages",
    );
    equal([body.model, body.reasoning_effort], ["tiny-2", "low"], "the model and its thinking");
    await menu("Title and system prompt");
    $("o-title").value = "A name of my own";
    labelled($("options"), "Save").click();
    await until(
      "it is renamed",
      () => $("title").textContent === "A name of my own" && listed()[0] === "A name of my own",
    );
    check(document.title.startsWith("A name of my own"), document.title);
    await fresh();
    $("model").value = "tiny";
    $("model").dispatchEvent(new Event("change"));
    equal($("effort").value, "", "another conversation thinks as usual");
    const [other] = await asking(() => say("Plain"));
    equal(
      [other.model, other.reasoning_effort, other.messages.length],
      ["tiny", undefined, 1],
      "and has no system prompt",
    );
    await go("A name of my own");
    equal([$("model").value, $("effort").value], ["tiny-2", "low"], "the conversation remembers");
    await fresh();
    $("model").value = "tiny-2";
    $("model").dispatchEvent(new Event("change"));
    await go("Plain");
    equal($("model").value, "tiny", "also where nothing was chosen");
    await fresh();
    $("model").value = "tiny";
    $("model").dispatchEvent(new Event("change"));
  },

  options_again() {
    entry("A name of my own").click();
    return until("model and effort are remembered", () => $("model").value === "tiny-2" && $("effort").value === "low");
  },

  async deletion() {
    await fresh();
    await say("To be deleted");
    await menu("Delete");
    await until("it is gone", () => !entry("To be deleted") && document.body.classList.contains("blank"));
    check(one(".toast").textContent.includes("“To be deleted” was deleted."), "it is said");
    targets();
    labelled(one(".toast"), "Undo").click();
    await until("it is back", () => $("title").textContent === "To be deleted" && answers().length === 1);
    await menu("Delete");
    await until("it is gone again", () => !entry("To be deleted"));
    one('.toast [aria-label="Dismiss"]').click();
    check(!one(".toast"), "the notice goes");
  },

  async titles() {
    await fresh();
    await say("Would you please explain the extraordinarily incomprehensible behaviour of fish?");
    equal($("title").textContent, "Would you please explain the extraordinarily…", "whole words");
  },

  async exports() {
    await go("First question");
    const markdown = await saved(() => menu("Export as Markdown"));
    equal(markdown.name, "first-question.md", "its name");
    check(
      markdown.text.startsWith("# First question\n\n## You\n\nFirst question\n\n## tiny\n\n# Catfish"),
      markdown.text.slice(0, 120),
    );
    const json = await saved(() => menu("Export as JSON"));
    const data = JSON.parse(json.text);
    equal([data.format, data.version, data.conversations.length], ["wels-chat", 1, 1], "the form");
    equal(data.conversations[0].messages.length, 7, "all versions are in it");
    await menu("Delete");
    await until("it is gone", () => !entry("First question"));
    await sleep(100);
    const file = (text) => new File([text], "export.json", { type: "application/json" });
    // A deleted conversation is there for a while: the import is another one.
    data.conversations[0].id += "x";
    data.conversations[0].title = "Imported";
    const renamed = JSON.stringify(data)
      .replace(/"id":"(\w+)"/g, '"id":"$1i"')
      .replace(/"parent":"(?!root)(\w+)"/g, '"parent":"$1i"');
    pick("import-file", file(renamed));
    await until("it is imported", () => entry("Imported"));
    check(one(".toast").textContent.includes("1 conversation was imported."), one(".toast").textContent);
    await go("Imported");
    equal(one(".user .count").textContent, "2/2", "with its versions");
    pick("import-file", file(renamed));
    await until("twice is once", () => one(".toast").textContent.includes("was here already"));
    pick("import-file", file("{}"));
    await until("what it is not", () => one(".toast").textContent.includes("neither an export of this page"));
    const whole = JSON.parse(
      (
        await saved(() => {
          $("export-all").click();
        })
      ).text,
    );
    equal(whole.conversations.length, listed().length, "all of them");
  },

  async chat_gpt() {
    const node = (id, parent, role, text, hidden) => [
      id,
      {
        id,
        parent,
        message: role && {
          author: { role },
          create_time: 1700000000 + id.length,
          content: { content_type: "text", parts: [text] },
          metadata: { model_slug: "gpt-x", ...(hidden && { is_visually_hidden_from_conversation: true }) },
        },
      },
    ];
    const mapping = Object.fromEntries([
      node("r", null),
      node("s", "r", "system", "hidden"),
      node("u", "s", "user", "An old question"),
      node("a1", "u", "assistant", "One answer"),
      node("a22", "u", "assistant", "Another answer"),
      node("t", "a1", "tool", "noise"),
      node("h", "t", "user", "context", true),
      node("u2", "h", "user", "More?"),
    ]);
    const talk = {
      id: "chatgpt-1",
      title: "From elsewhere",
      create_time: 1700000000.5,
      update_time: 1700000100,
      mapping,
      current_node: "u2",
    };
    pick("import-file", new File([JSON.stringify([talk, { id: "empty", mapping: {} }])], "conversations.json"));
    await until("it is imported", () => entry("From elsewhere"));
    check(!entry("Untitled"), "what is empty is left out");
    await go("From elsewhere");
    equal(
      all(".message .text").map((text) => text.textContent),
      ["An old question", "One answer", "More?"],
      "what was seen last",
    );
    equal(one(".assistant .count").textContent, "1/2", "with the other version");
    check(
      all("#list .group").some((group) => /2023/.test(group.textContent)),
      "under its date",
    );
  },

  /** Texts by button, drop and paste. */
  async files() {
    await fresh();
    pick("pick", new File(["let x = `1`;\n"], "code.rs", { type: "" }));
    await until("one file", () => all("#files li").length === 1);
    const drop = new DragEvent("drop", {
      bubbles: true,
      cancelable: true,
      dataTransfer: transfer(new File(["a ``` fence"], "notes.md")),
    });
    document.body.dispatchEvent(drop);
    await until("two files", () => all("#files li").length === 2);
    const paste = new Event("paste", { bubbles: true, cancelable: true });
    // Firefox makes no event with files.
    Object.defineProperty(paste, "clipboardData", {
      value: transfer(new File(["x"], "x.txt", { type: "text/plain" })),
    });
    $("input").dispatchEvent(paste);
    await until("three files", () => all("#files li").length === 3);
    targets();
    one('#files [aria-label="Remove x.txt"]').click();
    equal(
      all("#files .name").map((name) => name.textContent),
      ["code.rs", "notes.md"],
      "those that stay",
    );
    pick("pick", new File([new Uint8Array([0, 1, 255])], "program.bin"));
    await until("what is no text is refused", () =>
      one(".toast")?.textContent.includes("“program.bin” is neither text nor a picture"),
    );
    pick("pick", new File(["x".repeat(600 * 1024)], "large.txt"));
    await until("what is large is refused", () =>
      one(".toast").textContent.includes("“large.txt” is larger than 512 KB"),
    );
    const [body] = await asking(() => say("Look at these"));
    const wanted =
      "Look at these\n\nFile `code.rs`:\n\n```rs\nlet x = `1`;\n```\n\nFile `notes.md`:\n\n````md\na ``` fence\n````";
    equal(body.messages, [{ role: "user", content: wanted }], "as blocks of code");
    equal(
      all(".user .file .name").map((name) => name.textContent),
      ["code.rs", "notes.md"],
      "they are shown",
    );
    one(".user .file summary").click();
    await until("with their text", () => one(".user .file .code")?.textContent.includes("let x"));
    check($("files").hidden, "they are sent once");
  },

  /** Pictures, which this model does not read. */
  async pictures() {
    await fresh();
    pick("pick", await dot());
    await until("a picture", () => one("#files img")?.src.startsWith("data:image/png"));
    check($("blind").textContent.startsWith("tiny reads texts only and sees no pictures."), $("blind").textContent);
    check(!visible($("draw")) && !labelled($("blind"), "Ask tiny"), "no model here sees or draws");
    write("What is this?");
    equal(await asking(() => $("send").click()), [], "nothing is sent");
    targets();
    labelled($("blind"), "Leave them out").click();
    check($("files").hidden && $("blind").hidden, "they are left out");
    const [body] = await asking(() => say("What is this?"));
    equal(body.messages, [{ role: "user", content: "What is this?" }], "without the picture");
    write("/draw a fish");
    $("send").click();
    check(one(".toast").textContent.startsWith("No model of this server draws"), one(".toast").textContent);
    write("");
  },

  /** A server that is away, and one that breaks off. */
  async failures() {
    await fresh();
    const gone = () => Promise.reject(new TypeError("Failed to fetch"));
    await asking(async () => {
      await say("Hello?");
      const words = one(".error p").textContent;
      check(words.startsWith("The server does not answer.") && !words.includes("Failed to fetch"), words);
      await until("the banner", () => !$("banner").hidden);
      targets();
    }, gone);
    $("banner-again").click();
    await until("the server is found again", () => $("banner").hidden);
    labelled(one(".error"), "Try again").click();
    await until("an answer", () => !running() && !one(".error") && one(".numbers"));
    check(!one(".count"), "nothing is left of the failure");
    await asking(
      async () => {
        await say("Again");
        equal(last(".assistant .text").textContent, "It begins", "what had come");
        check(last(".error p").textContent.includes("broke off"), last(".error p").textContent);
      },
      () => streaming([said("It begins"), 30], false),
    );
    await asking(
      async () => {
        await say("And again");
        check(last(".error p").textContent.includes("broke off"), "an end without the mark of the end");
      },
      () => streaming([said("It ends")]),
    );
  },

  async waiting() {
    await fresh();
    await asking(
      async () => {
        write("Wait for me");
        $("send").click();
        await until("the place", () => $("state").textContent === "Waiting: 2 requests are before this one");
        check(running() && $("status").textContent !== "The answer is complete.", "nothing is complete");
        await until("the answer", () => !running());
        equal($("state").textContent, "", "no longer");
      },
      (address) =>
        address.includes("chat")
          ? streaming([": waiting: 2 requests are before this one\n\n", 300, said("Here"), DONE])
          : null,
    );
  },

  /** Settings are kept by Save alone, and only if they can be right. */
  async settings() {
    $("open-settings").click();
    await until("the dialog", () => $("settings").open);
    targets();
    $("s-temperature").value = "9";
    $("s-max_tokens").value = "1.5";
    labelled($("settings"), "Save").click();
    check($("settings").open, "it stays open");
    equal(
      [$("e-temperature").textContent, $("e-max_tokens").textContent],
      ["Temperature is from 0 to 2.", "The longest answer is a whole number."],
      "why",
    );
    check(document.activeElement === $("s-temperature"), "the focus is where it is wrong");
    labelled($("settings"), "Cancel").click();
    const stored = () => JSON.parse(localStorage.getItem("wels.settings"));
    equal(stored()?.temperature ?? "0.6", "0.6", "Cancel keeps nothing");
    $("open-settings").click();
    equal($("s-temperature").value, "0.6", "nor does it come back");
    Object.assign($("s-temperature"), { value: "0.3" });
    $("s-seed").value = "7";
    $("s-theme").value = "dark";
    labelled($("settings"), "Save").click();
    await until("it closes", () => !$("settings").open);
    equal([stored().temperature, stored().seed], ["0.3", "7"], "Save keeps");
    equal(document.documentElement.dataset.theme, "dark", "the colours");
    await fresh();
    const [body] = await asking(() => say("With a seed"));
    equal([body.temperature, body.seed, body.max_tokens], [0.3, 7, undefined], "and the answers");
    $("open-settings").click();
    Object.assign($("s-theme"), { value: "auto" });
    $("s-seed").value = "";
    $("s-temperature").value = "0.6";
    labelled($("settings"), "Save").click();
    equal(document.documentElement.dataset.theme, undefined, "as the system again");
  },

  before_escape() {
    $("open-settings").click();
    $("s-temperature").value = "9";
  },

  after_escape() {
    check(!$("settings").open, "Escape closes it");
    equal(JSON.parse(localStorage.getItem("wels.settings"))?.temperature ?? "0.6", "0.6", "and keeps nothing");
  },

  async shortcuts() {
    await fresh();
    await say("For shortcuts");
    const ctrl = { ctrlKey: true };
    key("k", ctrl);
    equal(document.activeElement, $("search"), "search");
    key("o", { ...ctrl, shiftKey: true });
    await until("a new conversation", () => document.body.classList.contains("blank"));
    key("ArrowDown", { altKey: true });
    await until("the one below", () => $("title").textContent === listed()[0]);
    key(",", ctrl);
    check($("settings").open, "settings");
    labelled($("settings"), "Cancel").click();
    key("/", ctrl);
    check($("keys").open && all("#keys-list dt").length > 9, "the list of them");
    labelled($("keys"), "Close").click();
    $("input").focus();
    write("");
    key("ArrowUp");
    check(one(".editor textarea").value === "For shortcuts", "what was said last is edited");
    key("Escape", {}, one(".editor textarea"));
    $("more").click();
    await until("the menu", () => document.activeElement?.textContent === "Title and system prompt");
    key("ArrowDown");
    equal(document.activeElement.textContent, "Export as Markdown", "arrows move in it");
    key("Escape");
    equal(document.activeElement, $("more"), "Escape leaves it");
  },

  targets_of_phone() {
    fits();
    targets();
    const seen = ["#title", "#more", "#open-side", "#input", "#send"].filter((selector) => {
      const { left, right, bottom } = one(selector).getBoundingClientRect();
      return left < 0 || right > innerWidth || bottom > innerHeight;
    });
    equal(seen, [], "outside of the window");
  },

  async phone_side() {
    $("open-side").click();
    await until("the list", () => one("aside").getBoundingClientRect().left >= 0);
    check($("main").inert && document.activeElement === $("close-side"), "the page behind it is out of reach");
    targets();
    key("Escape");
    await until("it is away", () => !$("main").inert);
    $("open-side").click();
    $("close-side").click();
    check(document.activeElement === $("open-side"), "the focus is back");
  },

  async phone_dialogs() {
    for (const name of ["settings", "keys", "options", "ask"]) {
      $(name).showModal();
      targets();
      const { left, right } = $(name).getBoundingClientRect();
      check(left >= 0 && right <= innerWidth && $(name).scrollWidth <= $(name).clientWidth + 1, `${name} fits`);
      $(name).close();
    }
    $("more").click();
    targets();
    const { left, right, bottom } = $("menu").getBoundingClientRect();
    check(left >= 0 && right <= innerWidth && bottom <= innerHeight, "the menu fits");
    $("menu").hidePopover();
  },
};
