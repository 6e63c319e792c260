//! A teacher, whose distribution of every next token a student learns.

use anyhow::Result;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::distil::Divergence;
use wels_model::config::ModelConfig;
use wels_model::model::{Model, Teacher};
use wels_model::params::Params;
use wels_runs::recipe::{Distil, DivergenceWay};

use crate::model::{config_of, load_params};
use crate::rank::Rank;
use crate::refusal::refuse;
use crate::start::{check_tokenizer, config_for, model_of};

/// A teacher, and how it is learnt from.
pub(crate) struct TeacherModel {
    model: Model,
    params: Params,
    divergence: Divergence,
    temperature: f32,
    cross_entropy: f32,
}

impl TeacherModel {
    /// The section's teacher, for a student of this vocabulary.
    pub fn open(rank: &Rank, tokenizer: &Tokenizer, section: &Distil) -> Result<TeacherModel> {
        let student = config_for(&rank.run, section.start())?;
        let location = model_of(&rank.run, &section.teacher)?;
        check_tokenizer(&location, tokenizer)?;
        let config = config_of(&location)?;
        if config.vocab_size != student.vocab_size {
            let (teacher, theirs, own) = (&section.teacher, config.vocab_size, student.vocab_size);
            let message =
                format!("the teacher {teacher} has a vocabulary of {theirs} tokens, and the student of {own}");
            let hint = "their distributions are compared token by token: give the student the teacher's vocab_size and \
                        tokenizer, or learn from the teacher's answers (sample_and_filter, then sft)";
            return Err(refuse(message, hint));
        }
        let params = load_params(&rank.device, &location, &config)?;
        let context = config.rope.max_positions;
        Ok(TeacherModel {
            model: Model::new(config, context),
            params,
            divergence: match section.divergence {
                DivergenceWay::ForwardKl => Divergence::Forward,
                DivergenceWay::ReverseKl => Divergence::Reverse,
            },
            temperature: section.temperature as f32,
            cross_entropy: section.cross_entropy as f32,
        })
    }

    /// As a step takes it.
    pub fn teacher(&self) -> Teacher<'_> {
        let TeacherModel { model, params, divergence, temperature, cross_entropy } = self;
        let (divergence, temperature, cross_entropy) = (*divergence, *temperature, *cross_entropy);
        Teacher { model, params, divergence, temperature, cross_entropy }
    }

    /// The longest sequence that it can be asked about.
    pub fn context(&self) -> usize {
        self.model.context_len()
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }
}
