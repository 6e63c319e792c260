//! From tokens to text that may be shown: whole characters, held back while they may begin a stop string.

use std::sync::Arc;

use wels_data::tokenizer::{StreamDecoder, Tokenizer};

/// The text of one answer as it grows.
pub(crate) struct TextStream {
    decoder: Option<StreamDecoder<Arc<Tokenizer>>>,
    stops: Vec<String>,
    held: String,
}

/// What a token added.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text to show, perhaps none.
    Text(String),
    /// A stop string is complete; this text came before it. Which one it is.
    Stop(String, usize),
}

impl TextStream {
    pub fn new(tokenizer: Option<&Arc<Tokenizer>>, stops: Vec<String>) -> Self {
        TextStream { decoder: tokenizer.map(|t| StreamDecoder::new(Arc::clone(t))), stops, held: String::new() }
    }

    pub fn push(&mut self, token: u32) -> Piece {
        // Ids beyond the tokenizer's vocabulary, which embeddings padded to a round size have, stand for no text.
        let text = self.decoder.as_mut().and_then(|decoder| decoder.step(token).ok()).unwrap_or_default();
        self.add(&text)
    }

    /// What is still held back, when no more tokens come.
    pub fn finish(&mut self) -> Piece {
        let text = self.decoder.take().map(StreamDecoder::finish).unwrap_or_default();
        match self.add(&text) {
            Piece::Text(text) => Piece::Text(text + &std::mem::take(&mut self.held)),
            stop => stop,
        }
    }

    fn add(&mut self, text: &str) -> Piece {
        self.held.push_str(text);
        // The one that is complete first, so that it does not matter how the text was cut into tokens.
        let place =
            |(which, stop): (usize, &String)| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at, which));
        if let Some((_, at, which)) = self.stops.iter().enumerate().filter_map(place).min() {
            self.held.truncate(at);
            return Piece::Stop(std::mem::take(&mut self.held), which);
        }
        let rest = self.held.split_off(self.held.len() - self.undecided());
        Piece::Text(std::mem::replace(&mut self.held, rest))
    }

    /// Bytes at the end that are a proper beginning of some stop string, the most that are.
    fn undecided(&self) -> usize {
        let begins = |stop: &String, len: usize| self.held.as_bytes().ends_with(&stop.as_bytes()[..len]);
        let longest = |stop: &String| (1..stop.len()).rev().find(|len| begins(stop, *len));
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(stops: &[&str]) -> TextStream {
        TextStream::new(None, stops.iter().map(|stop| stop.to_string()).collect())
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    #[test]
    fn what_may_begin_a_stop_string_waits() {
        let mut stream = stream(&["END", "Eins"]);
        assert_eq!(stream.add("one E"), text("one "));
        assert_eq!(stream.add("N"), text(""));
        assert_eq!(stream.add("E"), text("EN"));
        assert_eq!(stream.add("ND two"), Piece::Stop("".into(), 0));
    }

    #[test]
    fn what_is_held_comes_out_at_the_end() {
        let mut stream = stream(&["\n\n"]);
        assert_eq!(stream.add("a\n"), text("a"));
        assert_eq!(stream.finish(), text("\n"));
    }

    #[test]
    fn the_stop_string_that_ends_first_counts() {
        let mut stream = stream(&["cd", "bcde"]);
        assert_eq!(stream.add("abcdef"), Piece::Stop("ab".into(), 0));
    }

    proptest! {
        /// However the text is cut, what is shown is the text before the first place where a stop string is complete.
        #[test]
        fn cuts_do_not_matter(whole in "[ab\u{e9}]{0,24}", stop in "[ab\u{e9}]{1,4}", cuts in prop::collection::vec(1usize..4, 24)) {
            let mut stream = stream(&[&stop]);
            let (mut shown, mut stopped) = (String::new(), false);
            let chars: Vec<char> = whole.chars().collect();
            let mut rest = &chars[..];
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                rest = later;
                match stream.add(&now.iter().collect::<String>()) {
                    Piece::Text(text) => shown.push_str(&text),
                    Piece::Stop(text, _) => {
                        shown.push_str(&text);
                        stopped = true;
                        break;
                    }
                }
            }
            if !stopped {
                let Piece::Text(text) = stream.finish() else { panic!("a stop string at the end") };
                shown.push_str(&text);
            }
            prop_assert_eq!(stopped, whole.contains(&stop));
            prop_assert_eq!(shown, whole.split(&stop).next().unwrap());
        }
    }
}
