//! The JSON of the API: what clients may send and what they get. No other module knows a field's name.
//!
//! A parameter that is unknown, of the wrong type, out of range or at odds with another is an error that names it.

mod error;

mod fields;

mod sampling;

mod conversation;

mod chat;

mod completion;

mod embedding;

mod adapter;

mod picture;

mod image;

pub mod messages;

pub mod responses;

mod tools;

mod reply;

mod chat_reply;

pub use adapter::AdapterRequest;
pub use chat::ChatForm;
pub use chat_reply::{ChatReply, CompletionReply};
pub use completion::{CompletionRequest, Prompt};
pub use conversation::{ChatRequest, Prefix, Thinking};
pub use embedding::EmbeddingRequest;
pub use error::ApiError;
pub use image::{ImageHead, ImageRequest, images_error};
pub use picture::{NOT_FETCHED, PICTURE, PictureFile, PictureSource, take_pictures};
pub use reply::{
    AnswerEnd, CallDelta, Candidate, ChatDelta, Choice, ChoiceLogprobs, Head, Reply, StreamEvent, TokenLogprob,
    UsageCounts,
};
pub use sampling::{Format, SamplingFields, StreamMode};
pub use tools::{Tool, ToolChoice};

#[cfg(test)]
mod tests;
