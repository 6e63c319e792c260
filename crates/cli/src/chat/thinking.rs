//! Tells thinking and answer apart in a text that arrives in pieces.

const BEGIN: &str = "<think>";
const END: &str = "</think>";

/// What a piece of text belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Between the thinking marks.
    Thinking(&'a str),
    /// Everything else.
    Answer(&'a str),
}

/// Where in the text it is.
#[derive(Debug)]
pub struct Splitter {
    thinking: bool,
    held: String,
    /// White space at the beginning of a part is left out.
    blank: bool,
}

impl Splitter {
    /// For an answer to `prompt`, which may end with the mark that begins the thinking.
    pub fn new(prompt: &str) -> Self {
        Splitter { thinking: prompt.trim_end().ends_with(BEGIN), held: String::new(), blank: true }
    }

    /// Passes on what `text` makes certain.
    pub fn push<E>(&mut self, text: &str, pass: &mut dyn FnMut(Part) -> Result<(), E>) -> Result<(), E> {
        self.held.push_str(text);
        loop {
            let mark = if self.thinking { END } else { BEGIN };
            let Some(at) = self.held.find(mark) else { break };
            let rest = self.held.split_off(at);
            self.flush(pass)?;
            self.held = rest[mark.len()..].to_owned();
            self.thinking = !self.thinking;
            self.blank = true;
        }
        let mark = if self.thinking { END } else { BEGIN };
        let begun = (1..mark.len()).rev().find(|len| self.held.ends_with(&mark[..*len])).unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - begun);
        self.flush(pass)?;
        self.held = rest;
        Ok(())
    }

    /// Passes on what is left.
    pub fn finish<E>(mut self, pass: &mut dyn FnMut(Part) -> Result<(), E>) -> Result<(), E> {
        self.flush(pass)
    }

    fn flush<E>(&mut self, pass: &mut dyn FnMut(Part) -> Result<(), E>) -> Result<(), E> {
        let held = std::mem::take(&mut self.held);
        let text = if self.blank { held.trim_start() } else { &held };
        if text.is_empty() {
            return Ok(());
        }
        self.blank = false;
        pass(if self.thinking { Part::Thinking(text) } else { Part::Answer(text) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(prompt: &str, pieces: &[&str]) -> (String, String) {
        let (mut thinking, mut answer) = (String::new(), String::new());
        let mut splitter = Splitter::new(prompt);
        let mut pass = |part: Part| {
            match part {
                Part::Thinking(text) => thinking.push_str(text),
                Part::Answer(text) => answer.push_str(text),
            }
            Ok::<(), ()>(())
        };
        pieces.iter().for_each(|piece| splitter.push(piece, &mut pass).unwrap());
        splitter.finish(&mut pass).unwrap();
        (thinking, answer)
    }

    #[test]
    fn marks_divide_the_text_however_it_is_cut() {
        let expected = ("why\nnot".to_string(), "because < 3".to_string());
        let text = "<think>\nwhy\nnot</think>\n\nbecause < 3";
        assert_eq!(split("", &[text]), expected);
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(split("", &pieces.iter().map(String::as_str).collect::<Vec<_>>()), expected);
        assert_eq!(split("…<think>\n", &["why\nnot</th", "ink>because < 3"]), expected);
    }

    #[test]
    fn a_text_without_marks_is_the_answer() {
        assert_eq!(split("", &["a <", "b"]), (String::new(), "a <b".into()));
        assert_eq!(split("<think>", &["endless"]), ("endless".into(), String::new()));
    }
}
