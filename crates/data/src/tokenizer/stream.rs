//! Decoding one token at a time.

use super::{Pieces, Tokenizer, TokenizerError, failed};
use std::ops::Deref;

/// Turns ids into text as they come. A character whose bytes are spread over several tokens comes out whole, with the
/// token that completes it. Made by [`Tokenizer::stream`], or by [`StreamDecoder::new`] for one that keeps its
/// tokenizer.
pub struct StreamDecoder<T: Deref<Target = Tokenizer>> {
    tokenizer: T,
    /// Byte-level: bytes that do not yet make a character, at most three.
    pending: Vec<u8>,
    /// Other decoders: the state that the `tokenizers` crate keeps.
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

impl<T: Deref<Target = Tokenizer>> StreamDecoder<T> {
    /// Before the first id; `tokenizer` is a reference, or an `Arc`.
    pub fn new(tokenizer: T) -> Self {
        StreamDecoder { tokenizer, pending: Vec::new(), ids: Vec::new(), prefix: String::new(), prefix_index: 0 }
    }

    /// The text that `id` completes; empty while a character is unfinished. Bytes that can no longer become UTF-8 come
    /// out as U+FFFD, so the concatenation of all steps and [`StreamDecoder::finish`] is [`Tokenizer::decode`] of all
    /// ids.
    pub fn step(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.tokenizer.check_id(id)?;
        match &self.tokenizer.pieces {
            Pieces::Bytes(pieces) => {
                self.pending.extend_from_slice(&pieces[id as usize]);
                Ok(self.take_complete())
            }
            Pieces::Other(_) => {
                let inner = &self.tokenizer.inner;
                let (ids, prefix, index) = (&mut self.ids, &mut self.prefix, &mut self.prefix_index);
                let text = tokenizers::tokenizer::step_decode_stream(inner, vec![id], false, ids, prefix, index);
                Ok(text.map_err(|e| failed(&e))?.unwrap_or_default())
            }
        }
    }

    /// What is left when no more ids come: U+FFFD for an unfinished character, else nothing.
    pub fn finish(self) -> String {
        match &self.tokenizer.pieces {
            Pieces::Bytes(_) => String::from_utf8_lossy(&self.pending).into_owned(),
            Pieces::Other(_) => {
                let rest = self.tokenizer.inner.decode(&self.ids, false).unwrap_or_default();
                rest.strip_prefix(&self.prefix).unwrap_or_default().to_owned()
            }
        }
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest: &[u8] = &self.pending;
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, tail) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = tail;
                    // `None`: the tail may still become a character.
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}
