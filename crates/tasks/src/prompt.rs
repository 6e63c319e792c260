//! How a question is put to a model, and the form of the completion that goes with it.

use wels_data::Message;

use crate::completion::{AnswerStyle, Format, Thinking};
use crate::task::Prompt;

/// What stands around a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Nothing: the question in the fewest characters, for small models trained on nothing else. Thinking in tags, and
    /// behind it the bare answer.
    Terse,
    /// The template of R1-Zero ("DeepSeek-R1", Table 1) for base models. Thinking and answer in tags.
    R1Zero,
    /// A chat message that asks for a box. Thinking is free.
    Chat,
    /// The question alone as a chat message, for small models and questions about numbers: the last number counts.
    Short,
}

/// A style and the form of its completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presentation {
    /// What stands around the question.
    pub style: Style,
    /// What a completion should look like.
    pub format: Format,
}

impl From<Style> for Presentation {
    fn from(style: Style) -> Self {
        let (thinking, answer) = match style {
            Style::Terse => (Thinking::Tagged, AnswerStyle::Whole),
            Style::R1Zero => (Thinking::Tagged, AnswerStyle::Tags),
            Style::Chat => (Thinking::Free, AnswerStyle::Boxed),
            Style::Short => (Thinking::Free, AnswerStyle::LastNumber),
        };
        Presentation { style, format: Format { thinking, answer } }
    }
}

impl Presentation {
    /// The prompt for a question, of which `terse` is the short form and `full` the one in words.
    pub fn prompt(&self, terse: &str, full: &str) -> Prompt {
        match self.style {
            Style::Terse => Prompt::Text(terse.to_owned()),
            Style::R1Zero => Prompt::Text(r1_zero(full)),
            Style::Chat => Prompt::Messages(vec![Message::new("user", &format!("{full}\n{STEP_BY_STEP}"))]),
            Style::Short => Prompt::Messages(vec![Message::new("user", full)]),
        }
    }
}

/// The instruction that DeepSeek recommends for questions with one answer (model card of DeepSeek-R1).
pub const STEP_BY_STEP: &str = "Please reason step by step, and put your final answer within \\boxed{}.";

/// `question` in R1-Zero's template ("DeepSeek-R1", Table 1).
pub fn r1_zero(question: &str) -> String {
    format!(
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The \
         assistant first thinks about the reasoning process in the mind and then provides the user with the answer. \
         The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, \
         respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: {question}. Assistant:"
    )
}
