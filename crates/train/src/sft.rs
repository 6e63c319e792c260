//! Supervised fine-tuning: conversations as examples of which only what the assistant says is learnt.
//!
//! A step is [`Trainer::step`](crate::trainer::Trainer::step) on packed [`Example`]s: the mean loss over the
//! assistant's tokens of the whole batch.

use std::ops::Range;

use wels_data::chat::{ChatError, ChatTemplate, Message, RenderOptions, Segment, completion, encode_segments};
use wels_data::tokenizer::Tokenizer;
use wels_tasks::Prompt;
use wels_tasks::environment::{Demonstration, Said};

use crate::example::Example;
use crate::prompter::{PromptError, Prompter};

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
    reply(tokenizer, template, &[Message::new("user", question)], answer)
}

/// The example of an answer to a conversation, of which nothing else is learnt.
///
/// # Errors
/// As [`conversation`].
pub fn reply(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    answer: &str,
) -> Result<Example, ChatError> {
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let prompt = template.render(messages, &options)?;
    let (tokens, learn) = encode_segments(tokenizer, &completion(&prompt, answer, template.eos()))?;
    Ok(Example { tokens, learn })
}

/// The example of a played episode, whose tokens are those that a rollout would have: each turn by itself, behind the
/// prompt; learnt is what the model says, and that it ends its answer.
///
/// # Errors
/// [`PromptError`] as described there.
pub fn demonstration(prompter: &Prompter, played: &Demonstration) -> Result<Example, PromptError> {
    let eos = prompter.tokenizer.special().eos;
    let mut tokens = prompter.tokens(&played.prompt)?;
    let mut learn = vec![false; tokens.len()];
    for (at, said) in played.turns.iter().enumerate() {
        match said {
            Said::Model(text) => {
                tokens.extend(prompter.tokenizer.encode(text)?);
                tokens.extend(eos.filter(|_| at + 1 == played.turns.len()));
            }
            Said::Environment(observation) => tokens.extend(prompter.observation(observation, false)?),
        }
        learn.resize(tokens.len(), matches!(said, Said::Model(_)));
    }
    Ok(Example { tokens, learn })
}

/// The example of an answer as it was sampled, of which an environment said the bytes `said`, in order: each turn by
/// itself, as it was in the rollout. A question is put as the template puts it, unless an environment answered.
///
/// # Errors
/// [`PromptError`] as described there.
pub fn transcript(
    prompter: &Prompter,
    prompt: &Prompt,
    answer: &str,
    said: &[Range<usize>],
) -> Result<Example, PromptError> {
    if let (true, Some(template)) = (said.is_empty(), prompter.template) {
        return Ok(match prompt {
            Prompt::Text(question) => self::answer(prompter.tokenizer, template, question, answer)?,
            Prompt::Messages(messages) => reply(prompter.tokenizer, template, messages, answer)?,
        });
    }
    let mut tokens = prompter.tokens(prompt)?;
    let mut learn = vec![false; tokens.len()];
    let mut add = |text: &str, learns: bool| -> Result<(), PromptError> {
        tokens.extend(prompter.tokenizer.encode(text)?);
        learn.resize(tokens.len(), learns);
        Ok(())
    };
    let mut from = 0;
    for range in said {
        add(&answer[from..range.start], true)?;
        add(&answer[range.clone()], false)?;
        from = range.end;
    }
    add(&answer[from..], true)?;
    tokens.extend(prompter.tokenizer.special().eos);
    learn.resize(tokens.len(), true);
    Ok(Example { tokens, learn })
}
