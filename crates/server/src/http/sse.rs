//! Server-sent events, put together to pieces.

use axum::body::Bytes;
use serde_json::Value;

/// Events that go to the client in one piece.
#[derive(Default)]
pub(super) struct Events(String);

impl Events {
    pub fn data(&mut self, value: &Value) {
        self.0 += &format!("data: {value}\n\n");
    }

    /// The end of the stream.
    pub fn done(&mut self) {
        self.0 += "data: [DONE]\n\n";
    }

    /// A line that clients pass over, and that keeps the connection alive.
    pub fn comment(&mut self, text: &str) {
        self.0 += &format!(": {text}\n\n");
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is there so far.
    pub fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }
}
