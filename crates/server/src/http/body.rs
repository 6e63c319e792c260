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
use crate::wire::ApiError;

/// Pieces of a stream that may wait to be written to the connection: the ledger has them, the client has not.
const PIECES_MAX: usize = 1;

/// Reads a request's body, all of it.
pub(super) async fn read(request: Request, settings: &Settings) -> Result<Bytes, ApiError> {
    let limit = settings.body_bytes_max;
    let body = Limited::new(request.into_body(), limit);
    match tokio::time::timeout(settings.body_patience, body.collect()).await {
        Err(_) => Err(ApiError::slow_body()),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Ok(Err(_)) => Err(ApiError::invalid("The body broke off.")),
    }
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
