//! stdout, for data alone. A reader that has gone away ends the program quietly.

use std::fmt;
use std::io::{self, ErrorKind, Write};

use serde::Serialize;

/// Nobody reads stdout any more; other pipes that are closed are failures.
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of stdout has gone away")
    }
}

impl std::error::Error for Closed {}

/// Writes a line to stdout.
pub fn line(text: &str) -> io::Result<()> {
    text_now(&format!("{text}\n"))
}

/// Writes to stdout, at once.
pub fn text_now(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => io::Error::new(ErrorKind::BrokenPipe, Closed),
        _ => error,
    })
}

/// Whether the error is that nobody reads stdout any more.
pub fn is_closed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Closed>())
}

/// Writes a value as one line of JSON to stdout.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(&serde_json::to_string(value).expect("plain data"))
}
