//! Bodies: requests' are read within limits, streams' are fed through a bounded channel.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::fair_queue::Buffered;
use crate::wire::ApiError;

/// Pieces of a stream that may wait to be written to the connection: the ledger has them, the client has not.
const PIECES_MAX: usize = 1;

/// A request's body.
pub(super) struct BufferedBody {
    pub bytes: Vec<u8>,
    /// To be kept as long as the bytes, or what was made of them.
    pub buffered: Buffered,
}

/// Reads a request's body, all of it.
///
/// # Errors
/// 413 if it has more bytes than `limit`, 408 if it has not arrived within `timeout`, 400 if it breaks off, and 503 if
/// all bodies together are too many bytes.
pub(super) async fn read(
    request: Request,
    limit: usize,
    timeout: Duration,
    mut buffered: Buffered,
) -> Result<BufferedBody, ApiError> {
    let mut body = Limited::new(request.into_body(), limit);
    let mut bytes = Vec::new();
    let collect = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
                true => ApiError::too_large(limit),
                false => ApiError::invalid("The body broke off."),
            })?;
            if let Ok(data) = frame.into_data() {
                buffered.add(data.len())?;
                bytes.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    tokio::time::timeout(timeout, collect).await.map_err(|_| ApiError::slow_body())??;
    Ok(BufferedBody { bytes, buffered })
}

/// The body of a stream, and what feeds it.
pub(super) fn stream() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    (sender, Body::new(Pieces(receiver)))
}

struct Pieces(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
