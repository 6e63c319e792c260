//! The JSON of the API: what clients may send and what they get. No other module knows a field's name.
//!
//! A parameter that is unknown, of the wrong type, out of range or at odds with another is an error that names it.

mod error;

mod fields;

mod sampling;

mod chat;

mod completion;

mod tools;

mod reply;

pub use chat::{ChatRequest, Prefix};
pub use completion::{CompletionRequest, Prompt};
pub use error::ApiError;
pub use reply::{CallDelta, Candidate, ChatDelta, Choice, ChoiceLogprobs, Head, Reply, TokenLogprob, UsageCounts};
pub use sampling::{Format, SamplingFields, StreamMode};
pub use tools::{Tool, ToolChoice};

#[cfg(test)]
mod tests;
