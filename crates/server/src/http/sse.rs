//! Server-sent events, put together to pieces.

use axum::body::Bytes;

use crate::wire::StreamEvent;

/// Events that go to the client in one piece.
#[derive(Default)]
pub(super) struct Events(String);

impl Events {
    pub fn all(&mut self, events: Vec<StreamEvent>) {
        for event in events {
            self.0 += &match event {
                StreamEvent::Data(value) => format!("data: {value}\n\n"),
                StreamEvent::Named(name, value) => format!("event: {name}\ndata: {value}\n\n"),
                StreamEvent::Done => "data: [DONE]\n\n".to_owned(),
            };
        }
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
