//! The text in a call's arguments, as they come, where one string is all of them: `{"input": "…"}`.

/// Reads the string under one key while its JSON arrives in pieces.
pub struct JsonStringArgument {
    key: String,
    raw: String,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Before,
    Within,
    Behind,
}

impl JsonStringArgument {
    /// Waits for the string under `key`, which has to be the first one.
    pub fn new(key: &str) -> JsonStringArgument {
        JsonStringArgument { key: format!("\"{key}\""), raw: String::new(), state: State::Before }
    }

    /// What a piece of JSON adds to the string.
    pub fn push(&mut self, json: &str) -> String {
        self.raw.push_str(json);
        if self.state == State::Before {
            let Some(begin) = self.begin() else { return String::new() };
            self.raw.drain(..begin);
            self.state = State::Within;
        }
        if self.state == State::Behind {
            return String::new();
        }
        let sure = self.sure();
        let text: String = self.raw.drain(..sure).collect();
        if self.raw.starts_with('"') {
            self.state = State::Behind;
        }
        // A line break that is not escaped is no JSON, but some models write it.
        serde_json::from_str(&format!("\"{text}\"")).unwrap_or(text)
    }

    /// Where the string begins, behind `{"key": "`.
    fn begin(&self) -> Option<usize> {
        let rest = self.raw.trim_start().strip_prefix('{')?.trim_start().strip_prefix(self.key.as_str())?;
        let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        Some(self.raw.len() - rest.len())
    }

    /// Bytes of the string up to its end or up to an escape of which more may come.
    fn sure(&self) -> usize {
        let mut at = 0;
        while let Some(c) = self.raw[at..].chars().next() {
            let len = match c {
                '"' => return at,
                '\\' => match escape(&self.raw[at..]) {
                    Some(len) => len,
                    None => return at,
                },
                _ => c.len_utf8(),
            };
            at += len;
        }
        at
    }
}

/// The length of the escape at the beginning of a text, with its low surrogate; `None` if there may be more of it.
fn escape(text: &str) -> Option<usize> {
    if text.as_bytes().get(1)? != &b'u' {
        return Some(1 + text[1..].chars().next()?.len_utf8());
    }
    let high = u16::from_str_radix(text.get(2..6)?, 16);
    match high {
        Ok(0xd800..=0xdbff) if text.len() < 12 => None,
        Ok(0xd800..=0xdbff) if text[6..].starts_with("\\u") && text.is_char_boundary(12) => Some(12),
        _ => Some(6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_it_is_cut_the_string_is_the_same() {
        let text = "*** Begin Patch\n+\"é\" \\ \u{1f41f} tab\t{}\n";
        for json in [
            serde_json::json!({"input": text}).to_string(),
            format!("{{ \"input\" : {}}}", serde_json::to_string(text).unwrap().replace('\u{1f41f}', "\\ud83d\\udc1f")),
        ] {
            for size in 1..json.len() {
                let mut argument = JsonStringArgument::new("input");
                let chars: Vec<char> = json.chars().collect();
                let pieces = chars.chunks(size).map(|piece| argument.push(&piece.iter().collect::<String>()));
                assert_eq!(pieces.collect::<String>(), text, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn what_is_no_json_is_passed_on_and_ends() {
        let mut argument = JsonStringArgument::new("input");
        assert_eq!(argument.push("{\"input\": \"two\nlines\"}"), "two\nlines");
        assert_eq!(argument.push(" more"), "");
        let mut other = JsonStringArgument::new("input");
        assert_eq!(other.push("{\"output\": \"x\"}"), "");
    }
}
