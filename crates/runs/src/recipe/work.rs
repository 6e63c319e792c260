//! The kinds of a `[[stage]]`, and what is asked of any of them.

use serde::Serialize;

use super::pictures::{DrawRl, DrawScore, JanusTraining, VqTraining};
use super::shared::Optimization;
use super::stages::{Answering, Answers, Distil, Questions, Rl, SampleAndFilter, Score, Supervised};

/// What a stage does.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Next-token training on every token of worked examples.
    Pretrain(Box<Supervised>),
    /// The same on the answers alone.
    Sft(Box<Supervised>),
    /// Reinforcement learning by group relative policy optimization.
    Rl(Box<Rl>),
    /// Learning a teacher's distribution of every next token.
    Distil(Box<Distil>),
    /// Sampling answers and keeping the right ones, for a later stage to learn from.
    SampleAndFilter(Box<SampleAndFilter>),
    /// Making questions out of documents, for later stages to learn and to score.
    Questions(Box<Questions>),
    /// Grading models on held-out items.
    Score(Box<Score>),
    /// Training of a VQ tokenizer of pictures.
    Vq(Box<VqTraining>),
    /// Training of a Janus model on pictures to draw, questions about pictures, and text.
    Janus(Box<JanusTraining>),
    /// Reinforcement of what it draws.
    DrawRl(Box<DrawRl>),
    /// Grading what models draw and say of pictures.
    DrawScore(Box<DrawScore>),
}

impl Work {
    /// Whether a model comes of it.
    pub fn trains(&self) -> bool {
        !matches!(self, Work::SampleAndFilter(_) | Work::Questions(_) | Work::Score(_) | Work::DrawScore(_))
    }

    /// Whether models write answers in it, or draw.
    pub fn samples(&self) -> bool {
        self.answering().is_some() || matches!(self, Work::DrawRl(_) | Work::DrawScore(_))
    }

    /// What is asked, where models write answers.
    pub fn answering(&self) -> Option<&Answering> {
        match self {
            Work::Pretrain(_) | Work::Sft(_) => None,
            Work::Vq(_) | Work::Janus(_) | Work::DrawRl(_) | Work::DrawScore(_) => None,
            Work::Distil(distil) => match &distil.answers {
                Answers::Given(_) => None,
                Answers::Own(own) => Some(&own.rollouts.answering),
            },
            Work::Rl(rl) => Some(&rl.rollouts.answering),
            Work::SampleAndFilter(section) => Some(&section.answering),
            Work::Questions(section) => Some(&section.answering),
            Work::Score(section) => Some(&section.answering),
        }
    }

    /// How weights are learnt, where they are.
    pub fn optimization(&self) -> Option<&Optimization> {
        match self {
            Work::Pretrain(section) | Work::Sft(section) => Some(&section.optimization),
            Work::Rl(section) => Some(&section.optimization),
            Work::Distil(distil) => match &distil.answers {
                Answers::Given(section) => Some(&section.optimization),
                Answers::Own(section) => Some(&section.optimization),
            },
            Work::Vq(section) => Some(&section.optimization),
            Work::Janus(section) => Some(&section.optimization),
            Work::DrawRl(section) => Some(&section.optimization),
            Work::SampleAndFilter(_) | Work::Questions(_) | Work::Score(_) | Work::DrawScore(_) => None,
        }
    }

    /// Whether it has to do with pictures.
    pub fn is_of_pictures(&self) -> bool {
        self.pictures().is_some()
    }

    /// The world that it is of, or the path of pictures.
    pub fn pictures(&self) -> Option<&str> {
        match self {
            Work::Vq(section) => Some(&section.data.pictures),
            Work::Janus(section) => Some(&section.data.pictures),
            Work::DrawRl(section) => Some(&section.pictures),
            Work::DrawScore(section) => Some(&section.pictures),
            _ => None,
        }
    }

    /// As `kind` says it.
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Pretrain(_) => "pretrain",
            Work::Sft(_) => "sft",
            Work::Rl(_) => "rl",
            Work::Distil(_) => "distil",
            Work::SampleAndFilter(_) => "sample_and_filter",
            Work::Questions(_) => "questions",
            Work::Score(_) => "score",
            Work::Vq(_) => "vq",
            Work::Janus(_) => "janus",
            Work::DrawRl(_) => "draw_rl",
            Work::DrawScore(_) => "draw_score",
        }
    }
}
