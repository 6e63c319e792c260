//! One call as a JSON object, read character by character: `{"name": …, "arguments": {…}}`, or that within
//! `{"type": "function", "function": …}`.

/// What a character completed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing yet.
    More,
    /// The object is closed.
    End,
    /// This is no such object.
    Wrong,
}

/// Keys of a call, and of what stands around one.
const KEYS: [&str; 9] = ["name", "arguments", "parameters", "input", "function", "type", "id", "index", "call_id"];

/// Reads the object. Nesting is counted, not recursed into.
#[derive(Default)]
pub(super) struct CallReader {
    depth: usize,
    /// The depth around the object that has the name: 1 within another's `function`.
    base: usize,
    /// The string under way, as written, with its quotes.
    string: Option<String>,
    escaped: bool,
    key: Option<String>,
    after_colon: bool,
    /// Within the arguments' value.
    capturing: bool,
    /// The function's name, once it is known.
    pub name: Option<String>,
    /// What is known of the arguments and was not taken yet.
    pub arguments: String,
    /// Whether the arguments are complete.
    pub complete: bool,
}

impl CallReader {
    /// One that has read the beginning of an object.
    pub fn begun(text: &str) -> CallReader {
        let mut reader = CallReader::default();
        for c in text.chars() {
            reader.push(c);
        }
        reader
    }

    pub fn push(&mut self, c: char) -> Step {
        if self.capturing {
            self.arguments.push(c);
        }
        if let Some(string) = &mut self.string {
            string.push(c);
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => return self.end_string(),
                _ => {}
            }
            return Step::More;
        }
        match c {
            '"' if self.depth > 0 => self.string = Some("\"".to_owned()),
            '{' | '[' => return self.open(c),
            '}' | ']' => return self.close(),
            ':' if self.is_call_level() => self.after_colon = true,
            ',' if self.is_call_level() => (self.after_colon, self.key) = (false, None),
            _ if self.depth == 0 && !c.is_whitespace() => return Step::Wrong,
            _ => {}
        }
        Step::More
    }

    fn open(&mut self, c: char) -> Step {
        if self.depth == 0 && c == '[' {
            return Step::Wrong;
        }
        if self.depth == 1 && self.base == 0 && c == '{' && self.after_colon && self.key.as_deref() == Some("function")
        {
            (self.base, self.after_colon, self.key) = (1, false, None);
        } else if self.is_call_level() && self.after_colon && self.holds_arguments() && !self.complete {
            self.capturing = true;
            self.arguments.push(c);
        }
        self.depth += 1;
        Step::More
    }

    fn close(&mut self) -> Step {
        match self.depth {
            0 => return Step::Wrong,
            1 => return Step::End,
            depth if self.capturing && depth == self.base + 2 => (self.capturing, self.complete) = (false, true),
            _ => {}
        }
        self.depth -= 1;
        Step::More
    }

    fn end_string(&mut self) -> Step {
        let written = self.string.take().expect("called within a string");
        if !self.is_call_level() {
            return Step::More;
        }
        let Ok(text) = serde_json::from_str::<String>(&written) else { return Step::Wrong };
        if !self.after_colon {
            if !KEYS.contains(&text.as_str()) {
                return Step::Wrong;
            }
            self.key = Some(text);
        } else if self.key.as_deref() == Some("name") {
            self.name = Some(text);
        } else if self.holds_arguments() {
            // Some models write the arguments as a string of JSON.
            self.arguments = text;
            self.complete = true;
        }
        Step::More
    }

    fn is_call_level(&self) -> bool {
        self.depth == self.base + 1
    }

    fn holds_arguments(&self) -> bool {
        matches!(self.key.as_deref(), Some("arguments" | "parameters" | "input"))
    }
}
