//! Bodies: requests' are read within limits, streams' are fed through a bounded channel.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::app::Settings;
use super::fair_queue::Buffered;
use crate::wire::ApiError;

/// Pieces of a stream that may wait to be written to the connection: the ledger has them, the client has not.
const PIECES_MAX: usize = 1;

/// A request's body, which counts as buffered as long as it is there.
pub(super) struct BufferedBody {
    pub bytes: Vec<u8>,
    _buffered: Buffered,
}

/// Reads a request's body, all of it.
pub(super) async fn read(
    request: Request,
    settings: &Settings,
    mut buffered: Buffered,
) -> Result<BufferedBody, ApiError> {
    let limit = settings.body_bytes_max;
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
    tokio::time::timeout(settings.body_timeout, collect).await.map_err(|_| ApiError::slow_body())??;
    Ok(BufferedBody { bytes, _buffered: buffered })
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
