//! Supervised fine-tuning: conversations as examples of which only what the assistant says is learnt.
//!
//! A step is [`Trainer::step`](crate::trainer::Trainer::step) on packed [`Example`]s: the mean loss over the
//! assistant's tokens of the whole batch.

use wels_data::chat::{ChatError, ChatTemplate, Message, RenderOptions, Segment, completion, encode_segments};
use wels_data::tokenizer::Tokenizer;

use crate::example::Example;

/// The examples of a conversation: one, or, for templates that show past turns otherwise than the model wrote them (as
/// R1's does), one for each answer.
///
/// # Errors
/// [`ChatError`] if the template refuses the conversation or fails.
pub fn conversation(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<Vec<Example>, ChatError> {
    let options = RenderOptions::default();
    let several = match template.segments(messages, &options) {
        Ok(segments) => vec![segments],
        Err(ChatError::RewritesHistory { .. }) => answers(template, messages, &options)?,
        Err(error) => return Err(error),
    };
    let mut examples = Vec::new();
    for segments in several {
        let (tokens, learn) = encode_segments(tokenizer, &segments)?;
        let example = Example { tokens, learn };
        if example.tokens.len() >= 2 && example.has_target() {
            examples.push(example);
        }
    }
    Ok(examples)
}

/// The segments of each answer behind the prompt that asks for it.
fn answers(
    template: &ChatTemplate,
    messages: &[Message],
    options: &RenderOptions,
) -> Result<Vec<Vec<Segment>>, ChatError> {
    let prompting = RenderOptions { add_generation_prompt: true, ..options.clone() };
    let assistant = messages.iter().enumerate().filter(|(_, message)| message.role == "assistant");
    assistant
        .map(|(index, message)| {
            let prompt = template.render(&messages[..index], &prompting)?;
            let answer = message.content.as_str().unwrap_or_default();
            Ok(completion(&prompt, answer, template.eos()).to_vec())
        })
        .collect()
}

/// The example of a question and its answer, asked as the template asks.
///
/// # Errors
/// As [`conversation`].
pub fn answer(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    question: &str,
    answer: &str,
) -> Result<Example, ChatError> {
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let prompt = template.render(&[Message::new("user", question)], &options)?;
    let (tokens, learn) = encode_segments(tokenizer, &completion(&prompt, answer, template.eos()))?;
    Ok(Example { tokens, learn })
}
