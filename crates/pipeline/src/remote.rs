//! Environments behind an address: asked over HTTP, and written down as they answer.
//!
//! ```text
//! Played (wels_tasks) → Recorded → Posted        the questions that programs get, each a POST
//!                                → OpenEnv       the same, as OpenEnv's messages over a WebSocket
//! ```
//! What they have said stands in the stage's folder, by episode and turns: a run that goes on after a kill, and one
//! that is verified, is answered from there.

mod open_env;
mod recorded;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use ureq::Agent;
use wels_runs::recipe::TaskAddress;
use wels_tasks::Counterpart;

use crate::task::Programs;
use open_env::OpenEnv;
use recorded::Recorded;

/// Longest answer, bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Who is at an address, with `timeout` for each answer, and `record` of what was said before and is said now. With
/// [`Programs::Refuse`] nobody is asked: the record has to know.
///
/// # Errors
/// A record that cannot be read.
pub(crate) fn counterpart(
    at: TaskAddress,
    timeout: Duration,
    record: Option<&Path>,
    programs: Programs,
) -> Result<Box<dyn Counterpart>> {
    let live: Option<Box<dyn Counterpart>> = match (programs, at.open_env) {
        (Programs::Refuse, _) => None,
        (Programs::Run, true) => Some(Box::new(OpenEnv::new(at.url, timeout))),
        (Programs::Run, false) => Some(Box::new(Posted::new(at.url, timeout))),
    };
    match (record, live) {
        (Some(record), live) => Ok(Box::new(Recorded::open(record, live)?)),
        (None, Some(live)) => Ok(live),
        (None, None) => Err(anyhow!("nobody at {} may be asked, and nothing was recorded of it", at.url)),
    }
}

/// An agent for requests that are to be answered within `timeout`.
fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .user_agent(concat!("wels/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// The JSON of an answer, or what came instead.
fn body(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>, timeout: Duration) -> Result<Value, String> {
    let failed = |error: &ureq::Error| match error {
        ureq::Error::Timeout(_) => format!("gave no answer within {} s", timeout.as_secs_f64()),
        error => format!("gave no answer: {error}"),
    };
    let mut answer = answer.map_err(|error| failed(&error))?;
    let status = answer.status();
    let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    let text = text.map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(_) => format!("answered with more than {ANSWER_BYTES_MAX} bytes"),
        error => failed(&error),
    })?;
    let shown: String = text.trim().chars().take(200).collect();
    if !status.is_success() {
        return Err(format!("answered with status {}: {shown}", status.as_u16()));
    }
    serde_json::from_str(&text).map_err(|error| format!("answered with `{shown}`: {error}"))
}

/// A server that takes the questions of programs, each as the body of a POST.
struct Posted {
    agent: Agent,
    url: String,
    timeout: Duration,
    sent: u64,
}

impl Posted {
    fn new(url: &str, timeout: Duration) -> Posted {
        Posted { agent: agent(timeout), url: url.to_owned(), timeout, sent: 0 }
    }
}

impl Counterpart for Posted {
    fn ask(&mut self, mut question: Value, name: &str) -> Result<Value, String> {
        self.sent += 1;
        let id = self.sent.to_string();
        question["id"] = json!(id);
        let request = self.agent.post(&self.url).header("content-type", "application/json");
        let about = |what: String| format!("asked about {name}, {what}");
        let mut said = body(request.send(question.to_string()), self.timeout).map_err(about)?;
        let answered = said.as_object_mut().and_then(|said| said.remove("id"));
        match answered.as_ref().and_then(Value::as_str) {
            Some(answered) if answered == id => Ok(said),
            other => Err(format!("was asked {id:?}, about {name}, and answered {other:?}")),
        }
    }
}
