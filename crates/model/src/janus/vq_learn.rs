//! The objective of the VQ tokenizer and its gradients.
//!
//! loss = l1·mean|x̂ − x| + l2·mean(x̂ − x)² + mean(sg(z) − e)² + β·mean(z − sg(e))², with pixels x, their reconstruction
//! x̂, latents z at length 1 and their nearest codes e (van den Oord et al. 2017, eq. 3). Means are over all numbers of
//! the whole batch. Codes too are to have length 1, as in ViT-VQGAN (arXiv 2110.04627): whoever moves them sees to it.

use super::vq::VqNetwork;
use crate::ops::{self, Pull};
use crate::params::{Grads, Params};
use crate::tape::{Execution, Graph, Var};
use wels_device::{Ids, Tensor, WeightRef};

/// What a whole batch is to minimise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VqObjective {
    /// Pictures of the batch.
    pub pictures: usize,
    /// Factor of the mean absolute difference.
    pub l1: f32,
    /// Factor of the mean squared difference.
    pub l2: f32,
    /// β.
    pub commitment: f32,
}

/// What was seen of some pictures.
#[derive(Clone, Debug, Default)]
pub struct VqSeen {
    /// The code of each place.
    pub codes: Vec<u32>,
    /// Places whose latent is nearest to that code.
    pub found: u64,
    /// `[places, dim]`, at length 1.
    pub latents: Vec<f32>,
    /// Σ|x̂ − x|.
    pub absolute: f64,
    /// Σ(x̂ − x)².
    pub squared: f64,
    /// Σ(z − e)².
    pub distance: f64,
}

impl VqSeen {
    /// What was seen of further pictures.
    pub fn add(&mut self, mut further: VqSeen) {
        self.codes.append(&mut further.codes);
        self.found += further.found;
        self.latents.append(&mut further.latents);
        self.absolute += further.absolute;
        self.squared += further.squared;
        self.distance += further.distance;
    }
}

impl VqNetwork {
    /// Adds the gradients for pictures `[P·side², channels]`, a part of the batch of `objective`, to `grads`. A place's
    /// code is the nearest one; or the one that `codes` `[P·tokens]` says, which then stays as it is, and which its
    /// latent is drawn to by commitment alone.
    pub fn accumulate(
        &self,
        params: &Params,
        grads: &mut Grads,
        execution: &Execution,
        pixels: &Tensor,
        codes: Option<&[u32]>,
        objective: &VqObjective,
    ) -> VqSeen {
        let config = self.config();
        let elements = (objective.pictures * config.tokens() * config.code_dim) as f32;
        let commitment = objective.commitment / elements;
        let pull = match codes {
            None => Pull { codebook: 1.0 / elements, commitment, straight_through: true },
            // Codes that moved to latents would all be one before the encoder tells them apart.
            Some(_) => Pull { codebook: 0.0, commitment, straight_through: false },
        };
        let mut g = Graph::training(self.context(params, execution), grads);
        let z = g.constant(pixels.clone());
        let z = self.latents(&mut g, z);
        let z = ops::unit_rows(&mut g, &z);
        let near = nearest(&g, &z, params.of(self.codes()));
        let codes: Ids = codes.map_or_else(|| near.clone(), Ids::from);
        let found = near.iter().zip(codes.iter()).filter(|(near, code)| near == code).count() as u64;
        let e = ops::quantize(&mut g, &z, self.codes(), &codes, pull);
        let distance = z.to_host().iter().zip(&*e.to_host()).map(|(z, e)| f64::from(z - e).powi(2)).sum();
        let latents = z.to_host().into_owned();
        let seen = VqSeen { codes: codes.to_vec(), found, latents, distance, ..VqSeen::default() };
        drop(z);
        let out = self.decoded(&mut g, e);
        self.reconstruction(g, out, pixels, objective, seen)
    }

    /// [`VqNetwork::accumulate`] for the decoder alone, whose pictures' codes are known and stay.
    pub fn accumulate_decoder(
        &self,
        params: &Params,
        grads: &mut Grads,
        execution: &Execution,
        pixels: &Tensor,
        codes: &[u32],
        objective: &VqObjective,
    ) -> VqSeen {
        let mut g = Graph::training(self.context(params, execution), grads);
        let e = g.constant(ops::chosen(&g, params.of(self.codes()), &codes.into()));
        let out = self.decoded(&mut g, e);
        self.reconstruction(g, out, pixels, objective, VqSeen { codes: codes.to_vec(), ..VqSeen::default() })
    }

    /// The gradient of the reconstruction, and all that follow from it.
    fn reconstruction(&self, mut g: Graph, out: Var, pixels: &Tensor, of: &VqObjective, mut seen: VqSeen) -> VqSeen {
        let elements = (of.pictures * self.config().image_size().pow(2) * pixels.cols()) as f32;
        let (l1, l2) = (of.l1 / elements, 2.0 * of.l2 / elements);
        let mut gradient = Vec::with_capacity(pixels.len());
        for (out, pixel) in out.to_host().iter().zip(&*pixels.to_host()) {
            let difference = out - pixel;
            let sign = if difference == 0.0 { 0.0 } else { difference.signum() };
            gradient.push(l2 * difference + l1 * sign);
            seen.absolute += f64::from(difference.abs());
            seen.squared += f64::from(difference).powi(2);
        }
        let mut d_out = g.tensor(out.rows(), out.cols());
        d_out.set(0, &gradient);
        g.recording().expect("made for training").give(out.gradient(), d_out);
        drop(out);
        g.backward();
        seen
    }
}

/// Of each row of z the code whose row of the table has the greatest product with it: both having length 1, the
/// nearest; the first where several have.
fn nearest(g: &Graph, z: &Tensor, table: &Tensor) -> Ids {
    let mut products = g.tensor(z.rows(), table.rows());
    g.device().linear(g.precision(), z, &mut [(WeightRef::Plain(table), &mut products)]);
    let best = |row: &[f32]| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u32;
    products.to_host().chunks_exact(table.rows()).map(best).collect::<Vec<u32>>().into()
}
