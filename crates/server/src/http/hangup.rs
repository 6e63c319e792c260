//! The end of a connection by one of its requests: a client that does not read its stream must not hold the socket.

use std::sync::Arc;

use tokio::sync::Notify;

/// Ends a connection from within one of its requests.
#[derive(Clone, Default)]
pub struct Hangup(Arc<Notify>);

impl Hangup {
    /// Closes the connection, whatever it is at.
    pub fn hang_up(&self) {
        self.0.notify_one();
    }

    /// Waits until it is asked for.
    pub(super) async fn hung_up(&self) {
        self.0.notified().await;
    }
}
