//! What each of the ranks that serve a model together needs of memory.

use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use wels_cpu::{SMALL_BYTES, largest_share};
use wels_device::{BlockType, Precision};
use wels_engine::{Numbers, Options};
use wels_model::config::{CacheLayout, ModelConfig};
use wels_model::names::ParamKind;
use wels_model::paged::CacheDtype;
use wels_model::sizes::WeightSizes;
use wels_pipeline::words::short;

use crate::model::{self, OpenModel, Quant};
use crate::output;
use crate::placement::{self, Demand};

/// What a process has resident besides the model: its program, MPI, threads. Measured with Open MPI 4.1.
const PROCESS_BYTES: u64 = 48 << 20;

/// Bytes.
#[derive(Serialize)]
pub struct RanksPlan {
    ranks: usize,
    /// Of all ranks together.
    weights: u64,
    /// Of the rank after the first that has the most.
    weights_of_a_rank: u64,
    /// The first one also has what is not cut.
    weights_of_the_first: u64,
    /// Keys and values, with the first.
    cache: u64,
    /// Results of operations, with the first.
    results: u64,
    /// Of each rank, the program itself.
    process: u64,
    a_rank: u64,
    the_first: u64,
}

impl RanksPlan {
    /// Of the files of a model if there are some; else of its configuration, in bf16 where no narrower format is asked
    /// for.
    pub fn of(
        what: &Path,
        config: &ModelConfig,
        ranks: NonZeroUsize,
        quant: Quant,
        cache: NonZeroUsize,
    ) -> Result<Self> {
        let layout = if config.attention.is_mla() { CacheLayout::Latent } else { CacheLayout::Expanded };
        let open = has_weights(what).then(|| OpenModel::open(&model::locate(what)?)).transpose()?;
        let sizes = match &open {
            Some(open) => open.sizes(quant.into(), layout)?,
            None => WeightSizes::of(config, layout, |spec| match (quant, spec.kind) {
                (Quant::Stored, _) => BlockType::Bf16,
                (Quant::Q4, ParamKind::Matrix | ParamKind::Experts(_)) => BlockType::Q4_0,
                (Quant::Q4 | Quant::Q8, _) => BlockType::Q8_0,
            }),
        };
        Ok(RanksPlan::of_sizes(config, &sizes, layout, ranks.get(), (cache.get() as u64).saturating_mul(1 << 20)))
    }

    fn of_sizes(config: &ModelConfig, sizes: &WeightSizes, layout: CacheLayout, ranks: usize, cache: u64) -> RanksPlan {
        let (mut all, mut a_rank, mut whole) = (0, 0.0, 0);
        for (spec, bytes) in sizes.each(config) {
            let count = if let ParamKind::Experts(experts) = spec.kind { experts } else { 1 };
            all += bytes;
            match spec.kind.is_packable() && bytes >= SMALL_BYTES as u64 {
                true => a_rank += bytes as f64 * largest_share(ranks, spec.rows / count, count),
                false => whole += bytes,
            }
        }
        let numbers = Numbers { precision: Precision::F32, cache_dtype: CacheDtype::F16 };
        let demand =
            Demand { rows: Options::default().max_batch_tokens, layout, numbers: [numbers; 2], cache_bytes: 0 };
        let results = placement::results(config, sizes, demand);
        let a_rank = a_rank.round() as u64;
        RanksPlan {
            ranks,
            weights: all,
            weights_of_a_rank: a_rank,
            weights_of_the_first: a_rank + whole,
            cache,
            results,
            process: PROCESS_BYTES,
            a_rank: a_rank + PROCESS_BYTES,
            the_first: a_rank + whole + cache + results + PROCESS_BYTES,
        }
    }

    pub fn print(&self) -> std::io::Result<()> {
        let bytes = |n: u64| format!("{}B", short(n as f64));
        output::line("")?;
        let rows = [
            (format!("served by {} ranks, weights in all", self.ranks), self.weights),
            ("memory of a rank".into(), self.a_rank),
            ("  weights".into(), self.weights_of_a_rank),
            ("  the program itself".into(), self.process),
            ("memory of the first".into(), self.the_first),
            ("  weights".into(), self.weights_of_the_first),
            ("  keys and values".into(), self.cache),
            ("  results of operations".into(), self.results),
        ];
        rows.iter().try_for_each(|(name, value)| output::line(&format!("{name:<38} {:>20}", bytes(*value))))?;
        output::line("")
    }
}

/// Whether there is more than a configuration.
fn has_weights(what: &Path) -> bool {
    let is = |path: &Path, wanted: &str| path.extension().is_some_and(|extension| extension == wanted);
    let mut entries = std::fs::read_dir(what).into_iter().flatten().flatten();
    is(what, "gguf") && what.is_file() || entries.any(|entry| is(&entry.path(), "safetensors"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wels_model::presets::preset;

    #[test]
    fn ranks_share_the_weights() {
        let plan = |name: &str, ranks| {
            let ranks = NonZeroUsize::new(ranks).unwrap();
            let (config, cache) = (preset(name).unwrap(), NonZeroUsize::new(1024).unwrap());
            RanksPlan::of(Path::new(name), &config, ranks, Quant::Q4, cache).unwrap()
        };
        for name in ["deepseek-v3", "r1-distill-qwen-7b"] {
            for ranks in [1, 2, 4, 8] {
                let plan = plan(name, ranks);
                let least = plan.weights as f64 / ranks as f64;
                let over = plan.weights_of_the_first as f64 / least;
                assert!((1.0..1.05).contains(&over), "{name}: {over} of {ranks} ranks' share");
                assert!(plan.weights_of_a_rank <= plan.weights_of_the_first);
                assert!(plan.the_first > plan.a_rank + (1 << 30));
            }
        }
    }
}
