//! Firefox without a window, spoken to by Marionette: the length of a message, `:`, `[kind, id, …]`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Browser, Key, TIMEOUT};

pub struct Firefox {
    child: Child,
    stream: BufReader<TcpStream>,
    tabs: Vec<String>,
    next: u64,
    _folder: tempfile::TempDir,
}

impl Firefox {
    /// `None` where there is none.
    pub fn start() -> Option<Firefox> {
        let found = |name: &&str| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
        let program = ["firefox", "firefox-esr"].into_iter().find(found)?;
        let folder = tempfile::tempdir().unwrap();
        let profile = folder.path();
        // Port 0 is a free one, which the browser then writes into the profile.
        let preferences = "user_pref(\"marionette.port\", 0);\nuser_pref(\"ui.prefersReducedMotion\", 1);\n\
                           user_pref(\"app.update.disabledForTesting\", true);\n";
        std::fs::write(profile.join("user.js"), preferences).unwrap();
        let child = Command::new(program)
            .args(["--headless", "--marionette", "--no-remote", "--profile"])
            .arg(profile)
            .env("MOZ_DISABLE_CONTENT_SANDBOX", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stream = connect(&profile.join("MarionetteActivePort"));
        let mut browser = Firefox { child, stream, tabs: Vec::new(), next: 0, _folder: folder };
        browser.read();
        browser.call("WebDriver:NewSession", json!({}));
        let timeout_ms = u64::try_from(TIMEOUT.as_millis()).unwrap();
        browser.call("WebDriver:SetTimeouts", json!({"script": timeout_ms, "pageLoad": timeout_ms}));
        let first = browser.call("WebDriver:GetWindowHandle", json!({}));
        browser.tabs.push(first["value"].as_str().unwrap().to_owned());
        Some(browser)
    }

    fn read(&mut self) -> Value {
        let mut length = Vec::new();
        self.stream.read_until(b':', &mut length).unwrap();
        let digits = std::str::from_utf8(&length).unwrap().trim_end_matches(':');
        let mut bytes = vec![0; digits.parse().unwrap()];
        self.stream.read_exact(&mut bytes).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Does a command; its result.
    fn call(&mut self, name: &str, params: Value) -> Value {
        self.try_call(name, params).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn try_call(&mut self, name: &str, params: Value) -> Result<Value, String> {
        self.next += 1;
        let message = json!([0, self.next, name, params]).to_string();
        self.stream.get_mut().write_all(format!("{}:{message}", message.len()).as_bytes()).unwrap();
        let answer = self.read();
        match &answer[2] {
            Value::Null => Ok(answer[3].clone()),
            error => Err(error.to_string()),
        }
    }

    fn keys(&mut self, text: &str) {
        let actions: Vec<Value> = text
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()})))
            .collect();
        let source = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.call("WebDriver:PerformActions", json!({"actions": [source]}));
    }
}

/// Connects to the port of a file that is there once the browser listens.
fn connect(file: &std::path::Path) -> BufReader<TcpStream> {
    let begin = Instant::now();
    loop {
        let port = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u16>().ok());
        if let Some(stream) = port.and_then(|port| TcpStream::connect(("127.0.0.1", port)).ok()) {
            stream.set_read_timeout(Some(2 * TIMEOUT)).unwrap();
            return BufReader::new(stream);
        }
        assert!(begin.elapsed() < TIMEOUT, "Firefox does not listen");
        thread::sleep(Duration::from_millis(50));
    }
}

impl Browser for Firefox {
    fn eval(&mut self, expression: &str) -> Result<Value, String> {
        let script = format!(
            "const done = arguments[0]; (async () => ({expression}))()\
             .then((value) => done({{ value }}), (error) => done({{ error: String(error) }}));"
        );
        let params = json!({"script": script, "args": [], "newSandbox": false});
        // A page that is being left has no value.
        let result = self.try_call("WebDriver:ExecuteAsyncScript", params)?;
        match &result["value"]["error"] {
            Value::Null => Ok(result["value"]["value"].clone()),
            error => Err(error.as_str().unwrap_or_default().to_owned()),
        }
    }

    fn open(&mut self, address: &str) {
        self.call("WebDriver:Navigate", json!({"url": address}));
    }

    fn tab(&mut self) -> usize {
        let made = self.call("WebDriver:NewWindow", json!({"type": "window"}));
        self.tabs.push(made["handle"].as_str().unwrap().to_owned());
        self.switch(self.tabs.len() - 1);
        self.tabs.len() - 1
    }

    fn switch(&mut self, tab: usize) {
        let handle = self.tabs[tab].clone();
        self.call("WebDriver:SwitchToWindow", json!({"handle": handle, "focus": true}));
    }

    fn type_text(&mut self, text: &str) {
        self.keys(text);
    }

    fn press(&mut self, key: Key) {
        // WebDriver's names of keys.
        self.keys(match key {
            Key::Enter => "\u{E007}",
            Key::Escape => "\u{E00C}",
            Key::Tab => "\u{E004}",
        });
    }

    fn size(&mut self, width: u32, height: u32) {
        let frame = self.eval("[outerWidth - innerWidth, outerHeight - innerHeight]").unwrap();
        let around = |at: usize| u32::try_from(frame[at].as_i64().unwrap()).unwrap();
        let rect = json!({"width": width + around(0), "height": height + around(1)});
        self.call("WebDriver:SetWindowRect", rect);
    }

    fn dark(&mut self, _: bool) {}

    fn picture(&mut self) -> String {
        self.call("WebDriver:TakeScreenshot", json!({"full": false}))["value"].as_str().unwrap().to_owned()
    }

    fn violations(&mut self) -> Vec<String> {
        Vec::new()
    }
}

impl Drop for Firefox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
