//! A server whose engine says what the tests of the page need.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use wels_data::Tokenizer;
use wels_engine::{Event, FinishReason, Finished, Prepared, Request, RequestError, RequestId, Status, Token, Usage};
use wels_server::http::Settings;
use wels_server::worker::{Backend, Prepare};

use crate::lab::{Lab, Setup, tiny};

/// An answer with everything that the page can show, and things that it must not do.
const ANSWER: &str = "\nLet me think about **fish** first: $x^2$.\n</think>\n\n# Catfish\n\nThe *wels* is a **large** catfish, \
    with `Silurus glanis` as its name.\n\n1. It lives in rivers\n\
    2. It grows to $\\ell \\approx 3\\,\\mathrm{m}$\n   - seldom more\n\n\
    ```rust\nfn main() {\n    let fish = \"wels\"; // a comment\n    println!(\"{fish} {}\", 42);\n}\n```\n\n\
    | length | mass |\n|---:|:---|\n| 1 m | 8 kg |\n| 2 m | 60 kg |\n\n\
    $$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}, \\quad \
    \\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}$$\n\n\
    > A quotation, and [a link](https://example.org), and [no link](javascript:window.pwned=1).\n\n\
    <img src=x onerror=\"window.pwned=1\"><script>window.pwned=1</script> is text.";

/// An engine that says what it is told to, and without end if it is asked for something endless.
struct Scripted {
    tokenizer: Arc<Tokenizer>,
    answers: Vec<(RequestId, Usage, VecDeque<String>, bool)>,
    cancelled: Vec<RequestId>,
    next: u64,
}

impl Backend for Scripted {
    fn preparer(&self) -> Prepare {
        let refusal = || RequestError::Constraint { reason: "not by this engine".to_owned() };
        Arc::new(move |request: Request| Prepared::plain(request).ok_or_else(refusal))
    }

    fn enqueue(&mut self, prepared: Prepared) -> Result<RequestId, RequestError> {
        let request = prepared.request();
        self.next += 1;
        let prompt = self.tokenizer.decode(&request.prompt).unwrap();
        let asked = prompt.rsplit("<｜User｜>").next().unwrap().to_owned();
        let endless = asked.contains("endless");
        let text = if endless { "hm</think>and on " } else { ANSWER };
        let pieces = text.chars().collect::<Vec<_>>().chunks(6).map(|piece| piece.iter().collect()).collect();
        let usage = Usage { prompt: request.prompt.len(), ..Usage::default() };
        self.answers.push((RequestId(self.next), usage, pieces, endless));
        Ok(RequestId(self.next))
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        self.cancelled.push(id);
        true
    }

    fn step(&mut self) -> Vec<Event> {
        thread::sleep(Duration::from_millis(2));
        let mut events = Vec::new();
        let cancelled = std::mem::take(&mut self.cancelled);
        self.answers.retain_mut(|(id, usage, pieces, endless)| {
            let finished = |reason| Event::Finished(Finished { id: *id, reason, usage: *usage });
            if cancelled.contains(id) {
                events.push(finished(FinishReason::Cancelled));
                return false;
            }
            let Some(text) = pieces.pop_front() else {
                events.push(finished(FinishReason::Stop));
                return false;
            };
            if *endless && pieces.len() < 4 {
                pieces.push_back(" and".to_owned());
            }
            usage.generated += 1;
            events.push(Event::Token(Token {
                id: *id,
                token: 0,
                text,
                logprob: None,
                top_logprobs: Vec::new(),
                scored: Vec::new(),
            }));
            true
        });
        events
    }

    fn is_idle(&self) -> bool {
        self.answers.is_empty()
    }

    fn status(&self) -> Status {
        Status { running: self.answers.len(), ..Status::default() }
    }
}

/// A server with two names for its model, which thinks.
pub fn scripted() -> Lab {
    start(Settings::default())
}

/// The same, as `wels serve --no-key` is.
pub fn without_keys() -> Lab {
    start(Settings { without_key: Some("test".to_owned()), ..Settings::default() })
}

fn start(settings: Settings) -> Lab {
    let tokenizer = tiny().tokenizer.unwrap();
    let backend = Scripted { tokenizer: Arc::clone(&tokenizer), answers: Vec::new(), cancelled: Vec::new(), next: 0 };
    Setup { names: &["tiny", "tiny-2"], settings, ..Setup::thinking() }.start_with(backend, tokenizer)
}
