//! The gradients' way from a rank's shards to sums over all ranks, beside the backward pass.
//!
//! Parameters are in *buckets*: some of one layer, the last layer first, then those that several layers use. When the
//! backward pass of a rank's last micro-batch has left a layer, what the rank's other shards gave for it is added, and
//! its buckets are on their way while the layers before it are computed. All ranks begin all buckets in one order, also
//! where a loss was not finite.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wels_comm::{Comm, Lost, Pending};
use wels_device::Tensor;
use wels_model::params::{Grads, OnLayer, Params};

use crate::partials::Partials;
use crate::sharded::{Message, Owned};

/// Bytes of gradients that are worth a bucket of their own.
const BUCKET_BYTES: usize = 4 << 20;

/// Parameters whose gradients go together, and the layer that completes them.
pub(crate) struct Bucket {
    pub layer: Option<usize>,
    pub params: Vec<usize>,
}

/// The buckets of a model: the last layer's first, those without a layer at the end.
fn buckets(params: &Params, grads: &Grads) -> Vec<Bucket> {
    let layer = |param: usize| {
        let layer = params.specs()[param].layer();
        layer.filter(|_| grads.is_complete_with_its_layer(param))
    };
    let mut order: Vec<(Option<usize>, usize)> = (0..params.specs().len()).map(|param| (layer(param), param)).collect();
    order.sort_by_key(|(layer, param)| (std::cmp::Reverse(*layer), *param));
    let (mut buckets, mut bytes) = (Vec::<Bucket>::new(), 0);
    for (layer, param) in order {
        match buckets.last_mut().filter(|last| last.layer == layer && bytes < BUCKET_BYTES) {
            Some(last) => last.params.push(param),
            None => {
                bytes = 0;
                buckets.push(Bucket { layer, params: vec![param] });
            }
        }
        bytes += grads.values()[param].bytes();
    }
    buckets
}

/// What is under way.
struct Begun {
    bucket: usize,
    pending: Pending,
    message: Message,
}

/// The sums of a step.
pub(crate) struct Reduction {
    partials: Partials,
    comm: Arc<dyn Comm>,
    owned: Arc<Owned>,
    buckets: Vec<Bucket>,
    /// How many buckets have been begun.
    pub begun: usize,
    under_way: VecDeque<Begun>,
    /// Of this rank's part of each parameter, one a parameter, once there was a step.
    sums: Vec<Tensor>,
    lost: Option<Lost>,
}

/// A reduction that the backward pass reaches too.
#[derive(Clone)]
pub(crate) struct SharedReduction(Arc<Mutex<Reduction>>);

impl SharedReduction {
    pub fn new(comm: &Arc<dyn Comm>, owned: &Arc<Owned>, params: &Params, grads: &Grads) -> Self {
        let device = params.tensors().first().map(|first| &**first.device());
        let by_host = comm.world() > 1 && owned.link(device).is_none();
        SharedReduction(Arc::new(Mutex::new(Reduction {
            partials: Partials::default(),
            comm: comm.clone(),
            owned: owned.clone(),
            buckets: if by_host { buckets(params, grads) } else { Vec::new() },
            begun: 0,
            under_way: VecDeque::new(),
            sums: Vec::new(),
            lost: None,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Reduction> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the last micro-batch tells of its layers.
    pub fn on_layer(&self) -> OnLayer {
        let reduction = self.clone();
        Box::new(move |grads, layer| reduction.lock().leave_layer(grads, layer))
    }
}

impl Reduction {
    /// Begins a step; what is under way of one that was not finished goes nowhere.
    pub fn begin(&mut self) {
        self.partials.begin();
        self.under_way.drain(..).for_each(|begun| drop(begun.pending.wait()));
        self.begun = 0;
    }

    pub fn partials(&mut self) -> &mut Partials {
        &mut self.partials
    }

    /// The buckets, in the order in which gradients are complete; none where numbers do not go by the host.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    fn leave_layer(&mut self, grads: &mut Grads, layer: usize) {
        while self.buckets.get(self.begun).is_some_and(|bucket| bucket.layer >= Some(layer)) {
            for at in 0..self.buckets[self.begun].params.len() {
                let param = self.buckets[self.begun].params[at];
                self.partials.take_ahead(param, grads.completed(param));
            }
            self.begin_next(grads);
        }
        while self.under_way.front_mut().is_some_and(|begun| begun.pending.has_come()) {
            self.end_first(grads);
        }
    }

    /// Begins whatever has not been begun. Of a step that fails the numbers mean nothing, and go all the same.
    pub fn begin_rest(&mut self, grads: &Grads) {
        while self.begun < self.buckets.len() {
            self.begin_next(grads);
        }
    }

    fn begin_next(&mut self, grads: &Grads) {
        let message = self.owned.message(&self.buckets[self.begun].params, grads);
        let pending = self.comm.begin(self.owned.to_ranks(&message));
        self.under_way.push_back(Begun { bucket: self.begun, pending, message });
        self.begun += 1;
    }

    fn end_first(&mut self, grads: &Grads) {
        let Begun { bucket, pending, message } = self.under_way.pop_front().expect("looked at");
        if self.sums.is_empty() {
            self.sums = self.owned.room(grads);
        }
        match pending.wait() {
            Ok(received) => self.owned.add_up(&self.buckets[bucket].params, &received, &message, &mut self.sums),
            Err(lost) => self.lost = self.lost.or(Some(lost)),
        }
    }

    /// The sums of all ranks' gradients, of this rank's part of each parameter; where it is alone the gradients
    /// themselves.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn finish(&mut self, grads: &Grads) -> Result<Vec<Tensor>, Lost> {
        if self.comm.world() == 1 {
            return Ok(grads.values().to_vec());
        }
        if self.buckets.is_empty() {
            return self.owned.reduce_by_link(&*self.comm, grads.values());
        }
        while !self.under_way.is_empty() {
            self.end_first(grads);
        }
        self.lost.map_or_else(|| Ok(self.sums.clone()), Err)
    }
}

#[cfg(test)]
mod tests {
    use wels_cpu::testing::device;
    use wels_model::config::ModelConfig;
    use wels_model::model::Model;

    use super::*;

    #[test]
    fn buckets_are_of_one_layer_the_last_first_and_hold_each_parameter_once() {
        let json = r#"{"model_type": "deepseek_v3", "hidden_size": 256, "num_hidden_layers": 3,
            "first_k_dense_replace": 1, "intermediate_size": 512, "n_routed_experts": 16, "num_experts_per_tok": 2,
            "n_shared_experts": 1, "moe_intermediate_size": 512, "n_group": 1, "topk_group": 1,
            "routed_scaling_factor": 1.0, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": null,
            "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "vocab_size": 256,
            "max_position_embeddings": 32, "rope_theta": 10000.0, "initializer_range": 0.1,
            "num_nextn_predict_layers": 1}"#;
        let config = ModelConfig::from_hf_json(json).unwrap().0;
        let params = Params::init(&device(), &config, 1);
        let buckets = buckets(&params, &Model::new(config, 32).grads(&device()));
        let layers: Vec<Option<usize>> = buckets.iter().map(|bucket| bucket.layer).collect();
        assert!(layers.is_sorted_by(|one, next| one >= next), "{layers:?}");
        assert_eq!((layers[0], layers[layers.len() - 1]), (Some(3), None), "MTP's, and what all layers use");
        assert!(layers.iter().filter(|layer| **layer == Some(2)).count() > 2, "16 MB of experts: {layers:?}");
        assert_eq!(layers.iter().filter(|layer| **layer == Some(0)).count(), 1, "a dense layer: {layers:?}");
        let mut all: Vec<usize> = buckets.iter().flat_map(|bucket| bucket.params.iter().copied()).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..params.specs().len()));
        // MTP shares embedding and head, and adds to their gradients at places of its own.
        let last: Vec<&str> = buckets[layers.len() - 1].params.iter().map(|at| &*params.specs()[*at].name).collect();
        assert_eq!(last, ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]);
    }
}
