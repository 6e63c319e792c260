//! `[stage.lora]`: what is learnt is an adapter, and the weights that a stage begins with stay as they are.

use serde::{Serialize, Serializer};
use wels_model::adapter::{AdapterConfig, Targets};
use wels_model::config::ModelConfig;
use wels_model::frozen::{BlockType, Held};
use wels_model::names::{ParamSpec, param_specs};

use super::optimizer::{Defaults, Optimizer, Rule};
use super::reader::{FromToml, RecipeError, Section};

/// `[stage.lora]` of kinds `pretrain`, `sft`, `rl` and `distil`: see [adapters](adapters.md)
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lora {
    /// r: columns of B and rows of A.
    pub rank: usize,
    /// What is added is scaled by alpha/rank.
    pub alpha: f64,
    /// Which linear layers it changes: "all-linear", or a list of names such as `["q_proj", "v_proj"]`.
    #[serde(serialize_with = "target_names")]
    pub target_modules: Targets,
    /// Scale by alpha/√rank instead, as PEFT's key of this name.
    pub use_rslora: bool,
    /// How the weights beside it are held: as their files have them, blocks of a GGUF file too, or brought to a format.
    #[serde(serialize_with = "base_word")]
    pub base: Base,
}

/// Number formats of weights that an adapter leaves as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// As their files have them.
    Stored,
    F32,
    Bf16,
    /// 8 bits and a scale for 32.
    Q8,
    /// 4 bits and a scale for 32.
    Q4,
    /// 4 bits, a scale and a minimum for 32.
    Q41,
}

fn base_word<S: Serializer>(base: &Base, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(base.word())
}

impl Base {
    /// Its word in a recipe.
    pub fn word(self) -> &'static str {
        match self {
            Base::Stored => "stored",
            Base::F32 => "f32",
            Base::Bf16 => "bf16",
            Base::Q8 => "q8_0",
            Base::Q4 => "q4_0",
            Base::Q41 => "q4_1",
        }
    }

    /// As a model is loaded; `None` for all of it in f32.
    pub fn held(self) -> Option<Held> {
        match self {
            Base::Stored => Some(Held::AsStored),
            Base::F32 => None,
            Base::Bf16 => Some(Held::As(BlockType::Bf16)),
            Base::Q8 => Some(Held::As(BlockType::Q8_0)),
            Base::Q4 => Some(Held::As(BlockType::Q4_0)),
            Base::Q41 => Some(Held::As(BlockType::Q4_1)),
        }
    }

    /// Bytes of a model's weights that are held so, of files in f32.
    pub fn bytes(self, model: &ModelConfig) -> u64 {
        let bytes = |spec: &ParamSpec| {
            let format = self.held().map_or(BlockType::F32, |held| held.format(spec.kind, BlockType::F32));
            (spec.rows * spec.cols.div_ceil(format.len()) * format.bytes()) as u64
        };
        param_specs(model).iter().map(bytes).sum()
    }
}

fn target_names<S: Serializer>(targets: &Targets, serializer: S) -> Result<S::Ok, S::Error> {
    match targets {
        Targets::AllLinear => serializer.serialize_str(ALL_LINEAR),
        Targets::Names(names) => serializer.collect_seq(names),
    }
}

const ALL_LINEAR: &str = "all-linear";

impl FromToml for Targets {
    const EXPECTED: &'static str = "\"all-linear\" or a list of names in quotes";
    fn from_toml(value: toml::de::DeValue<'_>) -> Option<Self> {
        match value {
            toml::de::DeValue::String(word) => (word == ALL_LINEAR).then_some(Targets::AllLinear),
            list => Vec::from_toml(list).map(Targets::Names),
        }
    }
}

impl Lora {
    /// `[stage.lora]`, if it is written.
    pub(super) fn resolve(s: &mut Section) -> Result<Option<Lora>, RecipeError> {
        let Some(mut s) = s.table("lora")? else { return Ok(None) };
        let rank = s.get_where("rank", 16, |n| (1..=4096).contains(&n), "1 to 4096")?;
        let lora = Lora {
            rank,
            alpha: s.get_where("alpha", 32.0, |x| x > 0.0 && x <= 1e6, "greater than 0, up to 1e6")?,
            target_modules: s.get_or("target_modules", Targets::AllLinear)?,
            use_rslora: s.get_or("use_rslora", false)?,
            base: s.word(
                "base",
                &[
                    ("stored", Base::Stored),
                    ("f32", Base::F32),
                    ("bf16", Base::Bf16),
                    ("q8_0", Base::Q8),
                    ("q4_0", Base::Q4),
                    ("q4_1", Base::Q41),
                ],
            )?,
        };
        if lora.target_modules == Targets::Names(Vec::new()) {
            return Err(s.wrong("target_modules", "names no module"));
        }
        s.finish(&[])?;
        Ok(Some(lora))
    }

    /// Defaults of a stage with an adapter: layers of multi-token prediction and indexers have none, and so no loss;
    /// routers stay.
    pub(super) fn defaults(of: &Defaults) -> Defaults {
        Defaults { mtp_lambda: 0.0, bias_update_speed: 0.0, indexer_weight: 0.0, ..*of }
    }

    /// Refuses what would change the weights that stay as they are.
    pub(super) fn check(s: &Section, optimizer: &Optimizer) -> Result<(), RecipeError> {
        if optimizer.optimizer == Rule::Muon {
            return Err(s.wrong("optimizer", "is \"muon\", which is for whole matrices; an adapter takes \"adamw\""));
        }
        if optimizer.mtp_lambda > 0.0 {
            let message = format!("is {}, but layers of multi-token prediction have no adapter", optimizer.mtp_lambda);
            return Err(s.wrong("mtp_lambda", message + "; leave it out"));
        }
        if optimizer.indexer_weight > 0.0 {
            let message = format!("is {}, but indexers have no adapter", optimizer.indexer_weight);
            return Err(s.wrong("indexer_weight", message + "; leave it out"));
        }
        if optimizer.bias_update_speed > 0.0 {
            let message = format!("is {}, but an adapter leaves routers as they are", optimizer.bias_update_speed);
            return Err(s.wrong("bias_update_speed", message + "; leave it out"));
        }
        Ok(())
    }

    /// Numbers that it has in a model of this configuration; 0 where its modules are none of the model's, which the
    /// stage will refuse.
    pub fn parameters(&self, model: &ModelConfig) -> u64 {
        let specs = param_specs(model);
        let matrices = self.target_modules.matrices(model).unwrap_or_default();
        matrices.iter().map(|param| (self.rank * (specs[*param].rows + specs[*param].cols)) as u64).sum()
    }

    /// As models know it.
    pub fn config(&self) -> AdapterConfig {
        let Lora { rank, alpha, ref target_modules, use_rslora, base: _ } = *self;
        AdapterConfig { rank, alpha, rank_stabilised: use_rslora, targets: target_modules.clone() }
    }
}
