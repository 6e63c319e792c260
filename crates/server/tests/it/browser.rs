//! The web chat in real browsers: the same functions in Chromium and in Firefox. What is done in the page and what must
//! then be so is in `tests/web`; here are the servers, real keys, reloads, tabs and sizes. Skipped, loudly,
//! where a browser is not there. With `WELS_SCREENSHOTS` naming a directory, pictures of the page are left there; with
//! `WELS_PARTS` naming some of [`PARTS`], others are left out.

mod chromium;

mod firefox;

mod scripted;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::chromium::Chromium;
use self::firefox::Firefox;
use self::scripted::scripted;
use crate::images;
use crate::lab::Lab;

const TIMEOUT: Duration = Duration::from_secs(120);
/// What is done in the page: functions of four objects, and what they need.
const SCRIPTS: [&str; 6] = [
    include_str!("../web/tools.js"),
    include_str!("../web/hostile.js"),
    include_str!("../web/functions.js"),
    include_str!("../web/steps.js"),
    include_str!("../web/texts.js"),
    include_str!("../web/drawing.js"),
];
/// Put there by `npm ci` in `scripts/web`.
const AXE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/web/node_modules/axe-core/axe.min.js");

/// What the tests ask of a browser.
trait Browser {
    /// The value of an expression, which may be a promise, or what it has thrown.
    fn eval(&mut self, expression: &str) -> Result<Value, String>;
    fn open(&mut self, address: &str);
    /// Opens a tab and speaks to it from now on.
    fn tab(&mut self) -> usize;
    fn switch(&mut self, tab: usize);
    /// Types as a keyboard does, into what has the focus.
    fn type_text(&mut self, text: &str);
    fn press(&mut self, key: Key);
    fn size(&mut self, width: u32, height: u32);
    /// What the system's appearance is, if the browser can be told.
    fn dark(&mut self, dark: bool);
    /// A PNG in base64.
    fn picture(&mut self) -> String;
    /// What went wrong in pages since it was last asked for, if the browser says so.
    fn violations(&mut self) -> Vec<String>;
}

#[derive(Clone, Copy)]
enum Key {
    Enter,
    Escape,
    Tab,
}

/// A browser with the functions of `tests/web`.
struct Pages<'a> {
    browser: &'a mut dyn Browser,
    name: &'static str,
}

impl Pages<'_> {
    /// Calls a function of `tests/web`.
    fn call(&mut self, function: &str, argument: Value) -> Value {
        let argument = if argument.is_null() { String::new() } else { argument.to_string() };
        let scripts = SCRIPTS.join("\n");
        let expression = format!(
            "(() => {{ {scripts}\nreturn {{ ...functions, ...steps, ...texts, ...drawing }}; }})().{function}({argument})"
        );
        let begin = Instant::now();
        let value = self.browser.eval(&expression).unwrap_or_else(|error| panic!("{}: {function}: {error}", self.name));
        if begin.elapsed() > Duration::from_secs(2) {
            eprintln!("{}: {function} took {:.1} s", self.name, begin.elapsed().as_secs_f64());
        }
        value
    }

    fn all(&mut self, functions: &[&str]) {
        for function in functions {
            self.call(function, Value::Null);
        }
    }

    fn open(&mut self, lab: &Lab, hash: &str) {
        // An address that differs in its hash alone would load nothing.
        self.browser.open("about:blank");
        self.browser.open(&format!("http://{}/{hash}", lab.address));
        self.ready();
    }

    fn reload(&mut self) {
        let _ = self.browser.eval("void (delete document.documentElement.dataset.ready, location.reload())");
        self.ready();
    }

    fn ready(&mut self) {
        let begin = Instant::now();
        while self.browser.eval("document.documentElement?.dataset.ready ?? ''") != Ok(json!("yes")) {
            assert!(begin.elapsed() < TIMEOUT, "{}: the page does not start", self.name);
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn say(&mut self, text: &str) {
        self.call("say", json!(text));
    }

    fn looks(&mut self, name: &str) {
        let Ok(folder) = std::env::var("WELS_SCREENSHOTS") else { return };
        thread::sleep(Duration::from_millis(300));
        let path = Path::new(&folder).join(format!("{}-{name}.png.base64", self.name));
        std::fs::write(path, self.browser.picture()).unwrap();
    }

    /// Nothing was thrown, logged as an error or against the policy.
    fn is_clean(&mut self) {
        let violations = self.browser.violations();
        assert!(violations.is_empty(), "{violations:?}");
    }
}

type Part = (&'static str, fn(&mut Pages));

/// Each has a server, and with it an origin and a storage, of its own.
const PARTS: [Part; 10] = [
    ("functions", functions),
    ("versions", versions_after_a_reload),
    ("texts", texts_of_models),
    ("pictures", pictures_are_drawn_and_seen),
    ("tabs", tabs_agree_and_lose_nothing),
    ("phones", on_phones_everything_is_in_reach),
    ("keys", keys_are_explained_and_not_replaced_unasked),
    ("no key", a_server_without_keys_asks_for_none),
    ("order", tab_goes_through_the_page_in_its_order),
    ("offline", without_its_server_the_page_says_so),
];

/// Does all parts in one browser: to start one takes longer than most of them.
fn parts(browser: &mut dyn Browser, name: &'static str) {
    browser.dark(false);
    let mut pages = Pages { browser, name };
    let chosen = std::env::var("WELS_PARTS").unwrap_or_default();
    for (part, work) in PARTS.into_iter().filter(|(part, _)| chosen.is_empty() || chosen.contains(part)) {
        let begin = Instant::now();
        work(&mut pages);
        eprintln!("{name}: {part}: {:.1} s", begin.elapsed().as_secs_f64());
        pages.is_clean();
    }
}

#[test]
fn the_page_in_chromium() {
    match Chromium::start() {
        Some(mut browser) => parts(&mut browser, "chromium"),
        None => eprintln!("SKIPPED: there is no Chromium to look at the web chat with"),
    }
}

#[test]
fn the_page_in_firefox() {
    match Firefox::start() {
        Some(mut browser) => parts(&mut browser, "firefox"),
        None => eprintln!("SKIPPED: there is no Firefox to look at the web chat with"),
    }
}

fn functions(pages: &mut Pages) {
    let lab = scripted();
    pages.browser.size(1280, 860);
    pages.open(&lab, &format!("#key={}", lab.key));
    assert_eq!(pages.browser.eval("location.hash").unwrap(), "", "the key does not stay in the address");
    pages.call("forbids_html", Value::Null);
    let said = pages.browser.violations();
    assert!(said.iter().all(|violation| violation.contains("TrustedHTML")), "{said:?}");
    pages.call("empty", Value::Null);
    pages.looks("empty");
    pages.call("write", json!(""));
    pages.browser.type_text("What is a wels?");
    pages.browser.press(Key::Enter);
    pages.all(&["complete", "answer", "copies"]);
    pages.looks("answer");
    pages.all(&["branches", "background", "unseen", "drafts", "search", "options", "deletion", "titles"]);
    pages.reload();
    pages.all(&["options_again", "exports", "chat_gpt", "files", "pictures", "failures", "waiting", "settings"]);
    escape_keeps_nothing(pages);
    pages.all(&["shortcuts"]);
    assert!(lab.settled().iter().any(|entry| entry.outcome.as_deref() == Some("cancelled")));
}

fn escape_keeps_nothing(pages: &mut Pages) {
    pages.call("before_escape", Value::Null);
    pages.browser.press(Key::Escape);
    pages.call("after_escape", Value::Null);
    // Escape stops an answer, too.
    pages.call("fresh", Value::Null);
    pages.call("send_only", json!("Something endless"));
    pages.browser.press(Key::Escape);
    pages.call("stopped", Value::Null);
}

fn versions_after_a_reload(pages: &mut Pages) {
    let lab = scripted();
    pages.open(&lab, &format!("#key={}", lab.key));
    pages.call("branches", Value::Null);
    pages.reload();
    pages.call("branches_again", Value::Null);
    // What the page before this one kept in another form.
    pages.call("old_list", Value::Null);
    pages.reload();
    pages.call("opens", json!("From before"));
    assert_eq!(pages.call("said", Value::Null), json!(["Old?"]));
}

fn texts_of_models(pages: &mut Pages) {
    let lab = scripted();
    pages.open(&lab, &format!("#key={}", lab.key));
    pages.all(&["markdown", "hostile"]);
    let slowest = pages.call("pathological", Value::Null);
    let short = pages.call("long", json!(5_000));
    let long = pages.call("long", json!(20_000));
    let busy = pages.call("long_block", json!(4_000));
    eprintln!("{}: {short}, {long}, per cent of the time for one block: {busy}, {slowest}", pages.name);
    // Without the longest pause, which is the collector's of garbage.
    let time = |of: &Value| of["ms"].as_f64().unwrap() - of["most_ms"].as_f64().unwrap();
    // Four times as long takes four times the time, and not sixteen times.
    assert!(time(&long) < 9.0 * time(&short).max(200.0), "{short}, {long}");
    assert!(busy.as_object().unwrap().values().all(|share| share.as_f64().unwrap() < 60.0), "{busy}");
}

fn pictures_are_drawn_and_seen(pages: &mut Pages) {
    let lab = images::slow_lab();
    pages.browser.size(1280, 860);
    pages.open(&lab, &format!("#key={}", lab.key));
    pages.looks("draw-empty");
    pages.call("offers", Value::Null);
    pages.looks("draw-how");
    pages.all(&["closes_how", "begins"]);
    pages.looks("draw-progress");
    pages.call("ends", Value::Null);
    pages.looks("draw-done");
    pages.reload();
    pages.all(&["kept_pictures", "draws_again", "saves"]);
    on_small_and_dark(pages, "draw");
    pages.all(&["stops_drawing", "attaches", "sees_none"]);
    on_small_and_dark(pages, "blind");
    pages.all(&["asks_another", "goes_on_blind", "asks_about_drawn"]);
    pages.looks("asked");
    pages.all(&["refused_picture", "breaks_off", "exports_pictures"]);
    in_another_tab(pages, &lab);
    // A drawing that was stopped is not paid for.
    let stopped = |entry: &wels_server::ledger::Entry| entry.outcome.as_deref() == Some("cancelled");
    assert!(lab.settled().iter().any(stopped), "a drawing was stopped");
}

/// What one tab draws another one shows, and can stop.
fn in_another_tab(pages: &mut Pages, lab: &Lab) {
    let other = pages.browser.tab();
    pages.open(lab, "");
    pages.browser.switch(0);
    for (work, text, n) in [("watches", "Seen elsewhere", 3), ("stops_elsewhere", "Stopped elsewhere", 10)] {
        pages.browser.switch(0);
        pages.call("draws_for_others", json!({"text": text, "n": n}));
        pages.browser.switch(other);
        pages.call(work, json!(text));
    }
    pages.browser.switch(0);
}

fn on_small_and_dark(pages: &mut Pages, name: &str) {
    pages.looks(name);
    // Firefox's windows are at least 450 wide.
    pages.browser.size(if pages.name == "firefox" { 450 } else { 360 }, 740);
    pages.all(&["targets", "fits"]);
    pages.browser.dark(true);
    pages.looks(&format!("{name}-phone-dark"));
    pages.browser.dark(false);
    pages.browser.size(1280, 860);
}

fn tabs_agree_and_lose_nothing(pages: &mut Pages) {
    let lab = scripted();
    pages.open(&lab, &format!("#key={}", lab.key));
    let other = pages.browser.tab();
    pages.open(&lab, "");
    // Each says something of its own.
    pages.say("From the second");
    pages.browser.switch(0);
    pages.call("lists", json!("From the second"));
    pages.say("From the first");
    pages.browser.switch(other);
    pages.call("lists", json!("From the first"));
    // Both go on in one conversation.
    pages.call("opens", json!("From the first"));
    pages.call("send_only", json!("Something endless"));
    pages.browser.switch(0);
    pages.call("grows", Value::Null);
    pages.call("stops", Value::Null);
    pages.say("After it");
    pages.browser.switch(other);
    pages.call("shows", json!("After it"));
    assert_eq!(pages.call("said", Value::Null), json!(["From the first", "Something endless", "After it"]));
    at_once(pages, other);
    closed_while_it_answers(pages, &lab, other);
    pages.call("removes", Value::Null);
    pages.browser.switch(0);
    pages.call("lists_not", json!("From the first"));
    pages.call("lists", json!("From the second"));
}

/// Two tabs that say something at the same time: both are kept, one behind the other or as versions.
fn at_once(pages: &mut Pages, other: usize) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let time = u64::try_from(now.as_millis()).unwrap() + 1500;
    for (tab, text) in [(0, "One of two"), (other, "Two of two")] {
        pages.browser.switch(tab);
        pages.call("send_at", json!({"text": text, "time": time}));
    }
    thread::sleep(Duration::from_millis(1600));
    for tab in [0, other] {
        pages.browser.switch(tab);
        pages.call("is_said", json!("of two"));
        pages.call("complete", Value::Null);
    }
    for tab in [0, other] {
        pages.browser.switch(tab);
        pages.reload();
        let titles = pages.call("listed", Value::Null);
        assert_eq!(titles.as_array().unwrap().len(), 2, "{titles}");
        let said = pages.call("everything_said", Value::Null).to_string();
        for text in ["From the first", "Something endless", "After it", "One of two", "Two of two", "From the second"] {
            assert!(said.contains(text), "{text} is lost: {said}");
        }
    }
}

/// What has come is kept, and nobody waits for the rest.
fn closed_while_it_answers(pages: &mut Pages, lab: &Lab, other: usize) {
    pages.browser.switch(other);
    pages.call("fresh", Value::Null);
    pages.call("send_only", json!("The endless one"));
    pages.browser.open("about:blank");
    pages.browser.switch(0);
    pages.call("opens", json!("The endless one"));
    pages.call("broken_off", Value::Null);
    pages.browser.switch(other);
    pages.open(lab, "");
    pages.call("opens", json!("From the first"));
}

fn on_phones_everything_is_in_reach(pages: &mut Pages) {
    let lab = scripted();
    pages.open(&lab, &format!("#key={}", lab.key));
    // Firefox's windows are at least 450 wide.
    let least = if pages.name == "firefox" { 450 } else { 320 };
    for (width, height) in [(390.max(least), 844), (least, 568)] {
        pages.browser.size(width, height);
        pages.call("fresh", Value::Null);
        pages.call("targets_of_phone", Value::Null);
        pages.looks(&format!("phone-{width}-empty"));
        pages.say("What is a wels?");
        pages.all(&["targets_of_phone", "phone_side", "phone_dialogs"]);
        pages.looks(&format!("phone-{width}"));
        pages.browser.dark(true);
        pages.looks(&format!("phone-{width}-dark"));
        pages.browser.dark(false);
    }
}

fn keys_are_explained_and_not_replaced_unasked(pages: &mut Pages) {
    let lab = scripted();
    pages.open(&lab, "#key=%");
    pages.call("asks_for_key", Value::Null);
    pages.looks("key");
    pages.call("enters_key", json!("wels-wrong"));
    pages.call("key_refused", Value::Null);
    pages.browser.press(Key::Escape);
    pages.call("enters_key", json!(lab.key));
    pages.call("key_taken", Value::Null);
    pages.open_while_asked(&lab, "#key=stolen");
    pages.call("offered", json!("no"));
    pages.call("key_taken", Value::Null);
    assert_eq!(pages.call("stored_key", Value::Null), lab.key.as_str());
    pages.open_while_asked(&lab, "#key=wels-another");
    pages.call("offered", json!("yes"));
    pages.call("asks_for_key", Value::Null);
    assert_eq!(pages.call("stored_key", Value::Null), "wels-another");
}

impl Pages<'_> {
    /// Opens a page that asks a question before it is ready.
    fn open_while_asked(&mut self, lab: &Lab, hash: &str) {
        self.browser.open("about:blank");
        self.browser.open(&format!("http://{}/{hash}", lab.address));
        let begin = Instant::now();
        while self.browser.eval("document.getElementById('ask')?.open ?? false") != Ok(json!(true)) {
            assert!(begin.elapsed() < TIMEOUT, "{}: nothing is asked", self.name);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn without_its_server_the_page_says_so(pages: &mut Pages) {
    let lab = scripted();
    pages.open(&lab, &format!("#key={}", lab.key));
    pages.say("Before it went");
    pages.call("kept", Value::Null);
    // Once more, with the worker in between.
    pages.reload();
    pages.call("send_only", json!("Something endless"));
    drop(lab);
    pages.call("cut_off", Value::Null);
    pages.reload();
    pages.call("without_server", Value::Null);
    pages.call("opens", json!("Before it went"));
    pages.call("shows", json!("Catfish"));
    pages.looks("offline");
}

fn a_server_without_keys_asks_for_none(pages: &mut Pages) {
    let lab = scripted::without_keys();
    pages.open(&lab, "#key=none");
    pages.call("key_taken", Value::Null);
    assert_eq!(pages.call("stored_key", Value::Null), "");
    pages.say("Hello");
}

#[test]
fn axe_finds_nothing_serious() {
    let Ok(axe) = std::fs::read_to_string(AXE) else {
        eprintln!("SKIPPED: axe-core is not there: `npm ci` in scripts/web brings it");
        return;
    };
    let Some(mut browser) = Chromium::start() else {
        eprintln!("SKIPPED: there is no Chromium to look at the web chat with");
        return;
    };
    let mut pages = Pages { browser: &mut browser, name: "chromium" };
    for dark in [false, true] {
        pages.browser.dark(dark);
        judge_states(&mut pages, &axe);
    }
}

fn judge_states(pages: &mut Pages, axe: &str) {
    let judge = |pages: &mut Pages, state: &str| {
        pages.browser.eval(&format!("{axe}\n;0")).unwrap();
        assert_eq!(pages.call("axe", Value::Null), json!([]), "{state}");
    };
    let lab = scripted();
    pages.browser.size(1280, 860);
    pages.open(&lab, "");
    judge(pages, "a key is asked for");
    pages.open(&lab, &format!("#key={}", lab.key));
    judge(pages, "empty");
    pages.say("What is a wels?");
    judge(pages, "a conversation");
    pages.call("opens_thinking", Value::Null);
    judge(pages, "thinking");
    for dialog in ["settings", "keys", "options", "menu"] {
        pages.call("opens_dialog", json!(dialog));
        judge(pages, dialog);
        pages.call("closes_dialogs", Value::Null);
    }
    pages.browser.size(390, 844);
    judge(pages, "on a phone");
    pages.call("fresh", Value::Null);
    judge(pages, "empty on a phone");
    pages.call("opens_side", Value::Null);
    judge(pages, "the list on a phone");
    judge_drawing(pages, &judge);
}

fn judge_drawing(pages: &mut Pages, judge: &dyn Fn(&mut Pages, &str)) {
    let lab = images::slow_lab();
    pages.browser.size(1280, 860);
    pages.open(&lab, &format!("#key={}", lab.key));
    pages.call("offers", Value::Null);
    judge(pages, "how to draw");
    pages.all(&["closes_how", "begins"]);
    judge(pages, "while it draws");
    pages.call("ends", Value::Null);
    judge(pages, "drawn pictures");
    pages.all(&["attaches", "sees_none"]);
    judge(pages, "pictures for a model that sees none");
}

fn tab_goes_through_the_page_in_its_order(pages: &mut Pages) {
    let lab = scripted();
    pages.browser.size(1280, 860);
    pages.open(&lab, &format!("#key={}", lab.key));
    pages.browser.eval("document.activeElement.blur()").unwrap();
    let mut seen = Vec::new();
    for _ in 0..16 {
        pages.browser.press(Key::Tab);
        let id = pages.browser.eval("document.activeElement.id || document.activeElement.className").unwrap();
        seen.push(id.as_str().unwrap_or_default().to_owned());
    }
    let order = ["new", "search", "open-settings", "open-keys", "more", "suggestion", "input", "attach"];
    let places: Vec<Option<usize>> = order.iter().map(|id| seen.iter().position(|name| name == id)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{seen:?}");
}
