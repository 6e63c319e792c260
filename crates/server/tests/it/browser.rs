//! The web chat in a real Chromium without a window, spoken to through its debugging pipe. Skipped, loudly, where there
//! is none. With `WELS_SCREENSHOTS` naming a directory, pictures of the page are left there.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wels_data::Tokenizer;
use wels_engine::{Event, FinishReason, Finished, Prepared, Request, RequestError, RequestId, Status, Token, Usage};
use wels_server::worker::{Backend, Prepare};

use crate::lab::{Lab, Setup, tiny};

const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer with everything that the page can show, and things that it must not do.
const ANSWER: &str = "\nLet me think about **fish** first: $x^2$.\n</think>\n\n# Catfish\n\nThe *wels* is a **large** catfish, \
    with `Silurus glanis` as its name.\n\n1. It lives in rivers\n\
    2. It grows to $\\ell \\approx 3\\,\\mathrm{m}$\n   - seldom more\n\n\
    ```rust\nfn main() {\n    let fish = \"wels\"; // a comment\n    println!(\"{fish} {}\", 42);\n}\n```\n\n\
    | length | mass |\n|---:|:---|\n| 1 m | 8 kg |\n| 2 m | 60 kg |\n\n\
    $$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}, \\quad \
    \\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}$$\n\n\
    > A quotation, and [a link](https://example.org), and [no link](javascript:window.pwned=1).\n\n\
    <img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script> is text.";

/// An engine that says what it is told to, and without end if it is asked for something endless.
struct Scripted {
    tokenizer: Arc<Tokenizer>,
    answers: Vec<(RequestId, Usage, VecDeque<String>, bool)>,
    cancelled: Vec<RequestId>,
    next: u64,
}

impl Backend for Scripted {
    fn preparer(&self) -> Prepare {
        let refusal = || RequestError::Constraint { reason: "not by this engine".to_owned() };
        Arc::new(move |request: Request| Prepared::plain(request).ok_or_else(refusal))
    }

    fn enqueue(&mut self, prepared: Prepared) -> Result<RequestId, RequestError> {
        let request = prepared.request();
        self.next += 1;
        let prompt = self.tokenizer.decode(&request.prompt).unwrap();
        let asked = prompt.rsplit("<｜User｜>").next().unwrap().to_owned();
        let endless = asked.contains("endless");
        let text = if endless { "and on " } else { ANSWER };
        let pieces = text.chars().collect::<Vec<_>>().chunks(3).map(|piece| piece.iter().collect()).collect();
        let usage = Usage { prompt: request.prompt.len(), ..Usage::default() };
        self.answers.push((RequestId(self.next), usage, pieces, endless));
        Ok(RequestId(self.next))
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        self.cancelled.push(id);
        true
    }

    fn step(&mut self) -> Vec<Event> {
        thread::sleep(Duration::from_millis(2));
        let mut events = Vec::new();
        let cancelled = std::mem::take(&mut self.cancelled);
        self.answers.retain_mut(|(id, usage, pieces, endless)| {
            let finished = |reason| Event::Finished(Finished { id: *id, reason, usage: *usage });
            if cancelled.contains(id) {
                events.push(finished(FinishReason::Cancelled));
                return false;
            }
            let Some(text) = pieces.pop_front() else {
                events.push(finished(FinishReason::Stop));
                return false;
            };
            if *endless {
                pieces.push_back(text.clone());
            }
            usage.generated += 1;
            events.push(Event::Token(Token {
                id: *id,
                token: 0,
                text,
                logprob: None,
                top_logprobs: Vec::new(),
                scored: Vec::new(),
            }));
            true
        });
        events
    }

    fn is_idle(&self) -> bool {
        self.answers.is_empty()
    }

    fn status(&self) -> Status {
        Status { running: self.answers.len(), ..Status::default() }
    }
}

/// A browser with one page.
struct Browser {
    child: Child,
    to: File,
    from: mpsc::Receiver<Value>,
    session: String,
    next: u64,
    violations: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Browser {
    /// `None` where there is no Chromium.
    fn start() -> Option<Browser> {
        let found = |name: &&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
        let program = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(found)?;
        let folder = tempfile::tempdir().unwrap();
        let (to, from) = (folder.path().join("to"), folder.path().join("from"));
        assert!(Command::new("mkfifo").args([&to, &from]).status().unwrap().success());
        let flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run";
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!("exec {program} {flags} --user-data-dir=\"$0\" --remote-debugging-pipe 3<\"$1\" 4>\"$2\""))
            .args([&folder.path().join("profile"), &to, &from])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = File::options().write(true).open(to).unwrap();
        let from = BufReader::new(File::open(from).unwrap());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for message in from.split(0) {
                let Ok(message) = message else { return };
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let violations = Vec::new();
        let mut browser =
            Browser { child, to, from: receiver, session: String::new(), next: 0, violations, _folder: folder };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({}));
        }
        Some(browser)
    }

    /// Does a command of Chrome's DevTools protocol.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(&[0]).unwrap();
        loop {
            let message = self.from.recv_timeout(TIMEOUT).expect("the browser answers");
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            let entry = &message["params"]["entry"];
            if entry["level"] == "error" || message["method"] == "Runtime.exceptionThrown" {
                self.violations.push(message["params"].to_string());
            }
        }
    }

    /// The value of an expression, which may be a promise.
    fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    fn wait(&mut self, condition: &str) {
        let begin = Instant::now();
        while self.eval(condition) != json!(true) {
            assert!(begin.elapsed() < TIMEOUT, "never: {condition}\n{}", self.eval("document.body.innerText"));
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn open(&mut self, address: &str) {
        self.call("Page.navigate", json!({"url": address}));
        self.wait("document.readyState === 'complete'");
    }

    /// Types as a keyboard does, into what has the focus.
    fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    fn press(&mut self, key: &str) {
        let text = if key == "Enter" { "\r" } else { "" };
        let code = if key == "Enter" { 13 } else { 27 };
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let params = json!({"type": kind, "key": key, "text": text, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    fn size(&mut self, width: u32, height: u32) {
        let params = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    fn dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": value}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    fn picture(&mut self, name: &str) {
        let Ok(folder) = std::env::var("WELS_SCREENSHOTS") else { return };
        thread::sleep(Duration::from_millis(300));
        let data = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let path = Path::new(&folder).join(format!("{name}.png.base64"));
        std::fs::write(path, data["data"].as_str().unwrap()).unwrap();
    }

    /// Whether nothing on the page is wider than the page.
    fn fits(&mut self) -> bool {
        let box_fits = "((box) => box.scrollWidth <= box.clientWidth + 1)(document.getElementById('scroll'))";
        self.eval(&format!("document.documentElement.scrollWidth <= innerWidth && {box_fits}")) == json!(true)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn scripted() -> Lab {
    let tokenizer = tiny().tokenizer.unwrap();
    let backend = Scripted { tokenizer: Arc::clone(&tokenizer), answers: Vec::new(), cancelled: Vec::new(), next: 0 };
    Setup::thinking().start_with(backend, tokenizer)
}

#[test]
fn the_page_in_a_browser() {
    let Some(mut browser) = Browser::start() else {
        eprintln!("SKIPPED: there is no Chromium to look at the web chat with");
        return;
    };
    let lab = scripted();
    browser.size(1280, 860);
    browser.open(&format!("http://{}/#key={}", lab.address, lab.key));
    browser.wait("document.getElementById('model').textContent === 'tiny'");
    assert_eq!(browser.eval("location.hash"), "", "the key does not stay in the address");
    browser.picture("empty");

    browser.eval("document.getElementById('input').focus()");
    browser.type_text("What is a wels?");
    browser.press("Enter");
    browser.wait("document.querySelector('.numbers')?.textContent.includes('tokens/s') === true");
    an_answer_is_shown(&mut browser);
    looks(&mut browser);
    stop_retry_and_edit(&mut browser);

    // Another visit finds the conversation again.
    browser.open(&format!("http://{}/", lab.address));
    browser.wait("document.querySelectorAll('.message').length >= 2");
    assert_eq!(browser.eval("document.querySelector('#list li button').textContent"), "What is a wels?");
    assert_eq!(browser.eval("window.pwned === undefined"), json!(true));
    assert!(browser.violations.is_empty(), "{:?}", browser.violations);
    assert!(lab.settled().iter().any(|entry| entry.outcome.as_deref() == Some("cancelled")));
}

fn an_answer_is_shown(browser: &mut Browser) {
    for (selector, text) in [
        ("h1", "Catfish"),
        ("strong", "large"),
        ("em", "wels"),
        ("p > code", "Silurus glanis"),
        ("ol > li ul li", "seldom more"),
        (".code .kw", "fn"),
        (".code .str", "\"wels\""),
        (".code .num", "42"),
        (".code .com", "// a comment"),
        ("td", "1 m"),
        ("math[display=block] msqrt", "π"),
    ] {
        let found = browser.eval(&format!("document.querySelector('.assistant > .md {selector}')?.textContent"));
        assert_eq!(found, text, "{selector}");
    }
    let link = "[...document.querySelectorAll('.assistant a')].map((a) => a.href + ' ' + a.textContent).join()";
    assert_eq!(browser.eval(link), "https://example.org/ a link");
    assert_eq!(browser.eval("document.querySelectorAll('.assistant img, .assistant script').length"), 0);
    assert!(browser.eval("document.querySelector('.assistant > .md').textContent").to_string().contains("onerror"));
    let thought = "document.querySelector('.think .body').textContent.includes('Let me think about fish')";
    assert_eq!(browser.eval(thought), json!(true));
    assert_eq!(browser.eval("document.querySelector('.think').open"), json!(false));
    assert!(browser.eval("document.querySelector('.numbers').textContent").to_string().contains("USD"));
    // Every control has a name for those who do not see it.
    let unnamed = "[...document.querySelectorAll('button, input, textarea, select')].filter((e) => \
                   !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).length";
    assert_eq!(browser.eval(unnamed), 0);
}

fn looks(browser: &mut Browser) {
    for (name, width, height) in [("wide", 1280, 1500), ("phone", 390, 844)] {
        browser.size(width, height);
        for dark in [false, true] {
            browser.dark(dark);
            let top = "document.getElementById('scroll').scrollTop = 0";
            browser.eval(top);
            assert!(browser.fits(), "{name}");
            browser.picture(&format!("{name}-{}", if dark { "dark" } else { "light" }));
        }
    }
    browser.eval("document.getElementById('open-side').click()");
    browser.picture("phone-side");
    browser.eval("document.getElementById('close-side').click()");
    browser.size(1280, 860);
    browser.dark(false);
    browser.eval("document.getElementById('open-settings').click()");
    browser.wait("document.getElementById('settings').open");
    browser.picture("settings");
    browser.press("Escape");
    browser.wait("!document.getElementById('settings').open");
}

fn stop_retry_and_edit(browser: &mut Browser) {
    browser.eval("document.getElementById('input').focus()");
    browser.type_text("Something endless");
    browser.press("Enter");
    browser.wait("(document.querySelectorAll('.assistant')[1]?.textContent.length ?? 0) > 40");
    browser.press("Escape");
    browser.wait("document.getElementById('send').getAttribute('aria-label') === 'Send'");
    let user = "[...document.querySelectorAll('.message.user')].at(-1)";
    browser.eval(&format!("[...{user}.querySelectorAll('button')].find((b) => b.textContent === 'Edit').click()"));
    browser.eval(&format!("(() => {{ const area = {user}.querySelector('textarea'); area.value = 'And now?'; }})()"));
    browser.eval(&format!("[...{user}.querySelectorAll('button')].find((b) => b.textContent === 'Send').click()"));
    let done = "document.querySelectorAll('.numbers').length === 2 && [...document.querySelectorAll('.numbers')].at(-1)\
                .textContent.includes('tokens/s')";
    browser.wait(done);
    assert_eq!(browser.eval(&format!("{user}.querySelector('.text').textContent")), "And now?");
    let retry = "[...[...document.querySelectorAll('.assistant')].at(-1).querySelectorAll('button')]\
                 .find((b) => b.textContent === 'Retry').click()";
    browser.eval(retry);
    browser.wait("document.getElementById('send').getAttribute('aria-label') === 'Stop'");
    browser.wait(done);
    assert_eq!(browser.eval("document.querySelectorAll('.message').length"), 4);
}

/// Texts on which patterns that look again and again take quadratic or cubic time: 60,000 characters or so of each.
const PATHOLOGICAL: &str = r###"
    ["x" + "`".repeat(60000), "`x".repeat(30000), "``x`".repeat(15000),
     Array.from({length: 340}, (_, i) => "`".repeat(i + 1)).join(" "),
     "*".repeat(60000), "**a ".repeat(15000), "* a".repeat(20000), "*a **b ".repeat(8000), "_a __b ".repeat(8000),
     "~~a ".repeat(15000), "[".repeat(60000), "[](".repeat(20000), "[a](b \"".repeat(8000), "![".repeat(30000),
     "[](" + "a".repeat(60000), "\\(".repeat(30000), "\\[ x".repeat(15000), "$".repeat(59999), "$a ".repeat(20000),
     "$$a ".repeat(15000), " ".repeat(60000) + "x", "a" + "  ".repeat(30000) + "b", "# a" + " ".repeat(60000) + "b",
     "# " + "# ".repeat(30000) + "x", "- ".repeat(30000) + "x", "> ".repeat(30000), "1. ".repeat(20000),
     "a|b\n" + " ".repeat(60000) + "x", "a|b\n" + "-|".repeat(30000) + "x", "|".repeat(60000), "http://".repeat(8000),
     "https://" + ".".repeat(60000), "\\".repeat(60000), "a\\\n".repeat(20000), "```".repeat(20000),
     "```c\n" + "'\\".repeat(29000), "```js\n" + "a ".repeat(29000), "$$" + "{".repeat(60000), "$" + "\\hat".repeat(240) + "$",
     "$$" + "\\hat".repeat(15000) + "$$", "$$" + "x^".repeat(30000) + "$$", ("$" + "x^".repeat(1900) + "$ ").repeat(15), "$$\\begin{matrix}" + "&".repeat(20000) + "$$",
     "-\n".repeat(20000), "- a\n\n".repeat(10000), (" ".repeat(4) + "- a\n").repeat(8000), "*_".repeat(30000),
     "**_~~".repeat(12000), "*a_b`c[d".repeat(7000)]
"###;

#[test]
fn no_text_of_a_model_keeps_the_page_busy() {
    let Some(mut browser) = Browser::start() else {
        eprintln!("SKIPPED: there is no Chromium to look at the web chat with");
        return;
    };
    let lab = scripted();
    browser.open(&format!("http://{}/", lab.address));
    let slow = browser.eval(&format!(
        "import('/markdown.js').then(({{ render }}) => {PATHOLOGICAL}.flatMap((text) => {{
             const begin = performance.now();
             const shown = render(text);
             const time = performance.now() - begin;
             return time > 4000 || !shown.hasChildNodes() && text.trim() ? [`${{text.slice(0, 20)}}: ${{time}} ms`] : [];
         }}))"
    ));
    assert_eq!(slow, json!([]));
    assert!(browser.violations.is_empty(), "{:?}", browser.violations);
}

#[test]
fn names_that_every_object_has_are_no_commands_or_languages() {
    let Some(mut browser) = Browser::start() else {
        eprintln!("SKIPPED: there is no Chromium to look at the web chat with");
        return;
    };
    let lab = scripted();
    browser.open(&format!("http://{}/", lab.address));
    let mut shown = |text: &str| {
        let expression = format!("import('/markdown.js').then(({{ render }}) => render({}).textContent)", json!(text));
        browser.eval(&expression)
    };
    assert_eq!(shown("$\\constructor$"), "\\constructor");
    assert_eq!(shown("$\\left\\constructor x \\right\\toString$"), "x");
    assert_eq!(shown("$\\begin{constructor} x \\end{constructor}$"), "x");
    assert_eq!(shown("```constructor\nx\n```"), "constructorCopyx");
    assert_eq!(shown("a ``b ` c`` and `` d"), "a b ` c and `` d");
    assert_eq!(shown("**a *b* c** [d](https://e.org/f) \\*g\\*  \nh"), "a b c d *g*h");
}

#[test]
fn a_key_in_the_address_replaces_no_other_unasked() {
    let Some(mut browser) = Browser::start() else {
        eprintln!("SKIPPED: there is no Chromium to look at the web chat with");
        return;
    };
    let lab = scripted();
    let script = "window.asked = 0; window.confirm = () => { window.asked++; return false; };";
    browser.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": script}));
    let open = |browser: &mut Browser, hash: &str| {
        browser.open("about:blank");
        browser.open(&format!("http://{}/{hash}", lab.address));
        browser.wait("document.getElementById('list') !== null && location.hash === ''");
    };
    open(&mut browser, "#key=%");
    browser.wait("document.getElementById('settings').open");
    assert!(browser.violations.is_empty(), "{:?}", browser.violations);
    open(&mut browser, &format!("#key={}", lab.key));
    browser.wait("document.getElementById('model').textContent === 'tiny'");
    open(&mut browser, "#key=stolen");
    browser.wait("document.getElementById('model').textContent === 'tiny'");
    assert_eq!(browser.eval("window.asked"), 1);
    let stored = browser.eval("JSON.parse(localStorage.getItem('wels.settings')).key");
    assert_eq!(stored, lab.key.as_str());
}
