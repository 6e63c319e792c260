//! Chromium without a window, spoken to through its debugging pipe (Chrome's DevTools protocol).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use serde_json::{Value, json};

use super::{Browser, Key, TIMEOUT};

pub struct Chromium {
    child: Child,
    to: File,
    from: mpsc::Receiver<Value>,
    /// One for each tab.
    sessions: Vec<String>,
    /// The tab that is spoken to.
    tab: Option<usize>,
    next: u64,
    violations: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Chromium {
    /// `None` where there is none.
    pub fn start() -> Option<Chromium> {
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
        let from = messages(File::open(from).unwrap());
        let mut browser = Chromium {
            child,
            to,
            from,
            sessions: Vec::new(),
            tab: None,
            next: 0,
            violations: Vec::new(),
            _folder: folder,
        };
        browser.tab();
        Some(browser)
    }

    /// Does a command of the protocol.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.try_call(method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_call(&mut self, method: &str, params: Value) -> Result<Value, String> {
        self.next += 1;
        let id = self.next;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(tab) = self.tab {
            message["sessionId"] = json!(self.sessions[tab]);
        }
        self.to.write_all(message.to_string().as_bytes()).unwrap();
        self.to.write_all(&[0]).unwrap();
        loop {
            let message = self.from.recv_timeout(TIMEOUT).expect("the browser answers");
            if message["id"] == id {
                return match &message["error"] {
                    Value::Null => Ok(message["result"].clone()),
                    error => Err(error.to_string()),
                };
            }
            self.note(&message);
        }
    }

    /// What a page logs as an error is one, but for what the browser says of responses that are errors.
    fn note(&mut self, message: &Value) {
        let entry = &message["params"]["entry"];
        let of_a_page = entry["level"] == "error" && entry["source"] != "network";
        if of_a_page || message["method"] == "Runtime.exceptionThrown" {
            self.violations.push(message["params"].to_string());
        }
    }
}

/// Messages end with a zero byte.
fn messages(from: File) -> mpsc::Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for message in BufReader::new(from).split(0) {
            let Ok(message) = message else { return };
            if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Browser for Chromium {
    fn eval(&mut self, expression: &str) -> Result<Value, String> {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        // A page that is being left has no value.
        let result = self.try_call("Runtime.evaluate", params)?;
        match &result["exceptionDetails"]["exception"]["description"] {
            Value::Null => Ok(result["result"]["value"].clone()),
            description => Err(description.as_str().unwrap_or_default().to_owned()),
        }
    }

    fn open(&mut self, address: &str) {
        self.call("Page.navigate", json!({"url": address}));
    }

    fn tab(&mut self) -> usize {
        self.tab = None;
        let target = self.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = self.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        self.sessions.push(attached["sessionId"].as_str().unwrap().to_owned());
        self.tab = Some(self.sessions.len() - 1);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            self.call(domain, json!({}));
        }
        // A tab behind another is awake, as one in a window of its own is.
        self.call("Emulation.setFocusEmulationEnabled", json!({"enabled": true}));
        self.sessions.len() - 1
    }

    fn switch(&mut self, tab: usize) {
        self.tab = Some(tab);
    }

    fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    fn press(&mut self, key: Key) {
        let (name, code, text) = match key {
            Key::Enter => ("Enter", 13, "\r"),
            Key::Escape => ("Escape", 27, ""),
            Key::Tab => ("Tab", 9, ""),
        };
        for (kind, text) in [("keyDown", text), ("keyUp", "")] {
            let params = json!({"type": kind, "key": name, "text": text, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    fn size(&mut self, width: u32, height: u32) {
        let params = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", params);
    }

    fn dark(&mut self, dark: bool) {
        let features = [
            json!({"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }}),
            json!({"name": "prefers-reduced-motion", "value": "reduce"}),
        ];
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    fn picture(&mut self) -> String {
        self.call("Page.bringToFront", json!({})); // nothing is painted of a tab behind another
        self.call("Page.captureScreenshot", json!({"format": "png"}))["data"].as_str().unwrap().to_owned()
    }

    fn violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
