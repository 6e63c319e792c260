//! Tasks with checkable answers: what a model is asked, whether its answer is right, and what that is worth to RL.
//!
//! ```text
//! item        (task, index)          → prompt and reference
//! completion  text × format          → thinking, answer, faults of form
//! check       answer × reference     → right, or why not
//! episode     item × turns           → observations, and a reward at its end
//! ```
//! `grade` (evaluation) and `reward` (training) read a completion with the same parser. Items are functions of seed and
//! index; checking draws no random numbers and knows no clock, except that foreign programs have a limit of time.

#![forbid(unsafe_code)]

pub mod task;

pub mod completion;

pub mod prompt;

pub mod language;

pub mod number;

pub mod expression;

pub mod maths;

pub mod jail;

pub mod records;

pub mod listed;

pub mod benchmarks;

pub mod file;

pub mod statistics;

pub mod overlap;

pub mod cloze;

pub mod probe;

pub mod external;

mod lines;

pub mod played;

pub mod environment;

pub mod tooled;

pub mod tools;

pub mod arithmetic;

pub mod countdown;

pub mod draw;

pub use completion::{AnswerStyle, Format, Thinking};
pub use environment::{Environment, Episode, Observation, Step};
pub use jail::Jail;
pub use listed::Listed;
pub use played::Counterpart;
pub use prompt::{Presentation, Style};
pub use task::{Grade, Item, Prompt, Reason, Reference, Reward, RewardWeights, Split, Task, TaskError};
