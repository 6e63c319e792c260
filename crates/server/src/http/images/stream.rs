//! Pictures as OpenAI streams them: events with unfinished pictures, where they were asked for, and with finished ones,
//! each as soon as it is there. Comments between them, which clients pass over, tell how far the drawing is.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::mpsc;
use wels_engine::image;

use super::{Drawing, file, usage};
use crate::http::body;
use crate::http::generate::{StreamError, event_stream, queue_headers, room, waiting_text};
use crate::http::hangup::Hangup;
use crate::http::sse::Events;
use crate::money::{Nanos, Tokens};
use crate::wire::{ApiError, StreamEvent, images_error};
use crate::worker::ChoiceEvent;

/// Between two comments on how far the drawing is.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// What is made of codes, one after the other, while more are drawn.
#[derive(Clone, Copy)]
enum Render {
    /// Of a picture's first codes, for the `number`th time.
    Partial {
        picture: usize,
        number: u32,
        codes: usize,
    },
    Complete {
        picture: usize,
    },
}

/// A file in base64.
type Rendered = Result<(Render, String), ApiError>;
/// Its making, which begins when it is its turn.
type Rendering = Pin<Box<dyn Future<Output = Rendered> + Send>>;

/// What comes next.
enum Step {
    Drawn(Option<ChoiceEvent>),
    Rendered(Rendered),
    Silence,
}

pub(super) struct Stream {
    drawing: Drawing,
    partial_images: u32,
    /// What is to be made, in order.
    renders: VecDeque<Render>,
    rendering: Option<Rendering>,
    /// Codes of each picture that the client has been sent something of.
    sent: Vec<usize>,
    /// Tokens and cost of the finished pictures that were sent.
    completed: (Tokens, Nanos),
    /// Finished pictures that are not sent yet.
    left: usize,
    /// When the client was last told how far the drawing is.
    told: Option<Instant>,
}

impl Stream {
    pub fn new(drawing: Drawing, partial_images: u32) -> Stream {
        let left = drawing.pictures.len();
        Stream {
            drawing,
            partial_images,
            renders: VecDeque::new(),
            rendering: None,
            sent: vec![0; left],
            completed: Default::default(),
            left,
            told: None,
        }
    }

    pub fn response(self, hangup: Hangup) -> Response {
        let (pieces, body) = body::stream();
        let headers = queue_headers(&self.drawing.engine, &self.drawing.ticket);
        tokio::spawn(self.feed(pieces, hangup));
        event_stream(headers, body)
    }

    async fn feed(mut self, pieces: mpsc::Sender<Bytes>, hangup: Hangup) {
        match self.pump(&pieces).await {
            Ok(()) => {}
            Err(StreamError::Away) => self.drawing.account.settle("cancelled"),
            Err(StreamError::Slow) => {
                self.drawing.account.settle("slow_reader");
                hangup.hang_up();
            }
            Err(StreamError::Failed(error)) => {
                self.drawing.account.settle("error");
                let mut events = Events::default();
                events.all(vec![images_error(&error)]);
                if let Ok(room) = room(&pieces, self.drawing.account.settings().write_timeout).await {
                    room.send(events.take());
                }
            }
        }
    }

    async fn pump(&mut self, pieces: &mpsc::Sender<Bytes>) -> Result<(), StreamError> {
        while self.left > 0 {
            match self.next(pieces).await? {
                Step::Drawn(event) => {
                    let picture = self.drawing.take(event)?;
                    self.plan(picture);
                    self.tell(pieces);
                    self.drawing.go_on().await?;
                }
                Step::Rendered(rendered) => {
                    self.rendering = None;
                    let (render, file) = rendered?;
                    self.send(pieces, render, &file).await?;
                }
                Step::Silence => comment(pieces, &waiting_text(&self.drawing.engine, &self.drawing.ticket)),
            }
            self.render_next();
        }
        Ok(())
    }

    async fn next(&mut self, pieces: &mpsc::Sender<Bytes>) -> Result<Step, StreamError> {
        let draws = !self.drawing.pictures.iter().all(|picture| picture.is_complete);
        let keep_alive = self.drawing.account.settings().keep_alive;
        tokio::select! {
            biased;
            () = pieces.closed() => Err(StreamError::Away),
            rendered = ended(&mut self.rendering) => Ok(Step::Rendered(rendered)),
            event = self.drawing.ticket.events.recv(), if draws => Ok(Step::Drawn(event)),
            () = tokio::time::sleep(keep_alive) => Ok(Step::Silence),
        }
    }

    /// What is to be made of a picture that has changed. Unfinished ones that are not made by the time that it is
    /// finished would come too late.
    fn plan(&mut self, picture: usize) {
        let drawn = &self.drawing.pictures[picture];
        if drawn.is_complete {
            self.renders
                .retain(|render| !matches!(render, Render::Partial { picture: other, .. } if *other == picture));
            self.renders.push_back(Render::Complete { picture });
            return;
        }
        let (codes, parts) = (drawn.codes.len(), self.partial_images as usize + 1);
        let due = (1..parts).find(|part| part * self.drawing.described.codes / parts == codes);
        if let Some(part) = due {
            self.renders.push_back(Render::Partial { picture, number: part as u32 - 1, codes });
        }
    }

    fn render_next(&mut self) {
        if self.rendering.is_some() {
            return;
        }
        let Some(render) = self.renders.pop_front() else { return };
        let (renderer, described) = (self.drawing.renderer.clone(), Arc::clone(&self.drawing.described));
        let (Render::Partial { picture, .. } | Render::Complete { picture }) = render;
        let drawn = self.drawing.pictures[picture].clone();
        let make = move || {
            let Render::Partial { codes, .. } = render else { return file(&renderer, &drawn, &described) };
            let shown = renderer.partial(&drawn.codes[..codes])?;
            Ok(STANDARD.encode(image::encode_png(&shown, &[])))
        };
        let app = Arc::clone(&self.drawing.app);
        self.rendering = Some(Box::pin(async move { app.queue.render(make).await.map(|file| (render, file)) }));
    }

    /// Tells how far all pictures are, if the client has read what was before.
    fn tell(&mut self, pieces: &mpsc::Sender<Bytes>) {
        if self.told.is_some_and(|told| told.elapsed() < PROGRESS_PAUSE) {
            return;
        }
        self.told = Some(Instant::now());
        let drawn: usize = self.drawing.pictures.iter().map(|picture| picture.codes.len()).sum();
        let all = self.drawing.pictures.len() * self.drawing.described.codes;
        comment(pieces, &format!("drawing: {drawn} of {all} codes"));
    }

    /// Writes to the ledger what the client will have been sent, and sends it. What was seen of a picture is paid for.
    async fn send(&mut self, pieces: &mpsc::Sender<Bytes>, render: Render, file: &str) -> Result<(), StreamError> {
        let mut events = Events::default();
        events.all(vec![self.event(render, file)]);
        let room = room(pieces, self.drawing.account.settings().write_timeout).await?;
        let output = self.sent.iter().map(|codes| *codes as u64).sum();
        let tokens = Tokens { miss: self.drawing.prompt_tokens, output, ..Tokens::default() };
        self.drawing.account.write(tokens).await?;
        if self.left == 0 {
            self.drawing.account.settle("done");
        }
        room.send(events.take());
        Ok(())
    }

    fn event(&mut self, render: Render, file: &str) -> StreamEvent {
        let head = self.drawing.head;
        match render {
            Render::Partial { picture, number, codes } => {
                self.sent[picture] = codes;
                head.partial(picture, self.drawing.pictures[picture].seed, number, codes, file)
            }
            Render::Complete { picture } => {
                let drawn = &self.drawing.pictures[picture];
                self.sent[picture] = drawn.codes.len();
                self.left -= 1;
                let (before, before_cost) = self.completed;
                let output = before.output + drawn.codes.len() as u64;
                let tokens = Tokens { miss: self.drawing.prompt_tokens, output, ..before };
                let cost = self.drawing.prices.cost(tokens);
                self.completed = (tokens, cost);
                let own = Tokens { miss: tokens.miss - before.miss, output: output - before.output, ..before };
                head.completed(picture, drawn.seed, file, usage(own, Nanos(cost.0 - before_cost.0)))
            }
        }
    }
}

/// Sends a comment, unless the client has not read what was before it.
fn comment(pieces: &mpsc::Sender<Bytes>, text: &str) {
    if let Ok(room) = pieces.try_reserve() {
        let mut events = Events::default();
        events.comment(text);
        room.send(events.take());
    }
}

/// The end of the work, if there is some.
async fn ended(rendering: &mut Option<Rendering>) -> Rendered {
    match rendering {
        Some(rendering) => rendering.await,
        None => std::future::pending().await,
    }
}
