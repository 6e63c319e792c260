//! The SigLIP tower on the tape, of many pictures at once: what [`super::vision`] computes forward.

use super::config::VisionConfig;
use crate::ops::{self, Affine, Map, WholeAttention};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::Ids;

/// Which parameter belongs where.
pub(crate) struct Tower {
    config: VisionConfig,
    patches: Map,
    positions: Weight,
    layers: Vec<Layer>,
    norm: Affine,
}

struct Layer {
    norm1: Affine,
    qkv: [Map; 3],
    projection: Map,
    norm2: Affine,
    fc1: Map,
    fc2: Map,
}

impl Tower {
    pub fn new(wiring: &mut Wiring, config: &VisionConfig) -> Tower {
        const NAME: &str = "model.vision_model";
        // The weight of a convolution whose windows do not overlap is a linear map's.
        let layer = |i| Layer::new(wiring, &format!("{NAME}.encoder.layers.{i}"));
        let layers = (0..config.layers).map(layer).collect();
        Tower {
            layers,
            patches: Map::named(wiring, &format!("{NAME}.embeddings.patch_embedding")),
            positions: wiring.weight(&format!("{NAME}.embeddings.position_embedding.weight")),
            norm: Affine::named(wiring, &format!("{NAME}.post_layernorm")),
            config: config.clone(),
        }
    }

    /// The states `[P·tokens, width]` of the patches `[P·tokens, channels·patch²]` of P pictures, of which sequence i
    /// of the batch has the rows `starts[i]..starts[i + 1]`.
    ///
    /// # Panics
    /// If the rows are not those of whole pictures.
    pub fn states(&self, g: &mut Graph, patches: &Var, starts: &Ids) -> Var {
        let (tokens, rows) = (self.config.tokens(), patches.rows());
        assert!(rows.is_multiple_of(tokens), "{rows} patches of pictures of {tokens}");
        g.enter("vision_model");
        let places: Vec<u32> = (0..rows).map(|row| (row % tokens) as u32).collect();
        let positions = ops::embedding(g, self.positions, &places.into(), None);
        let x = ops::dense(g, patches, self.patches, starts);
        let x = ops::add(g, &positions, x);
        let x = self.layers.iter().fold(x, |x, layer| layer.run(g, &self.config, x, starts));
        ops::layer_norm(g, &x, self.norm, self.config.norm_eps)
    }
}

impl Layer {
    fn new(wiring: &mut Wiring, name: &str) -> Layer {
        Layer {
            norm1: Affine::named(wiring, &format!("{name}.layer_norm1")),
            qkv: ["q", "k", "v"].map(|part| Map::named(wiring, &format!("{name}.self_attn.{part}_proj"))),
            projection: Map::named(wiring, &format!("{name}.self_attn.projection_layer")),
            norm2: Affine::named(wiring, &format!("{name}.layer_norm2")),
            fc1: Map::named(wiring, &format!("{name}.mlp.fc1")),
            fc2: Map::named(wiring, &format!("{name}.mlp.fc2")),
        }
    }

    fn run(&self, g: &mut Graph, config: &VisionConfig, x: Var, starts: &Ids) -> Var {
        let normal = ops::layer_norm(g, &x, self.norm1, config.norm_eps);
        let qkv = self.qkv.map(|map| ops::dense(g, &normal, map, starts));
        let attended = ops::whole_attention(g, WholeAttention { qkv, heads: config.heads, rows: config.tokens() });
        let attended = ops::dense(g, &attended, self.projection, starts);
        let x = ops::add(g, &x, attended);
        let normal = ops::layer_norm(g, &x, self.norm2, config.norm_eps);
        let inner = ops::dense(g, &normal, self.fc1, starts);
        let inner = ops::gelu(g, &inner);
        let inner = ops::dense(g, &inner, self.fc2, starts);
        ops::add(g, &x, inner)
    }
}
