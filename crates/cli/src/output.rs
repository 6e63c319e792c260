//! stdout, for data alone. A reader that has gone away ends the program quietly.

use std::io::{self, Write};

use serde::Serialize;

/// Writes a line to stdout.
pub fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Writes a value as one line of JSON to stdout.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(&serde_json::to_string(value).expect("plain data"))
}
