//! The operations: forward and backward part of each side by side, over the operations of a [`wels_device::Device`].
//!
//! Each file states the formula, the shapes, what is saved for the backward part, and the source. In the comments `dy`
//! is the gradient of the loss with respect to `y`. An operation that takes a variable by value may go on with its
//! buffer.
//!
//! Shape letters: T tokens, D model width, H heads, E experts, K experts a token, S = T·K slots, V vocabulary.

mod add;
mod attention;
mod bias;
mod bring;
mod choose;
mod codes;
mod columns;
mod combine;
mod conv;
mod dense;
mod double;
mod embedding;
mod entries;
mod expert;
mod expert_exchange;
mod gelu;
mod group_norm;
mod grouped;
mod head;
mod latent;
mod layer_norm;
mod linear;
mod low_rank;
mod norm;
mod rope;
mod route;
mod rows;
mod streams;
mod swiglu;
mod whole_attention;

pub use add::add;
pub use attention::{Part, Parts, attention};
pub use bias::bias;
pub use bring::{bring, bring_f32};
pub use choose::{Choice, choose};
pub use codes::{Pull, chosen, quantize, unit_rows};
pub use columns::{beside, split};
pub use combine::combine;
pub use conv::{Convolution, conv};
pub use dense::{Map, dense};
pub use double::double;
pub use embedding::embedding;
pub use entries::{EntryChoice, EntryParts, attend_entries, choose_entries, compress, keep_rows, kept_rows};
pub use expert::{Slots, expert_bias, expert_feed_forward, expert_gate_up, expert_swiglu_linear};
pub use expert_exchange::{Exchanged, from_holders, spread, to_holders};
pub use gelu::gelu;
pub use group_norm::group_norm;
pub use grouped::grouped_linear;
pub use head::{Head, distil_loss, head_loss, head_loss_of_rows, logits};
pub use latent::{LatentShape, latent_attention};
pub use layer_norm::{Affine, layer_norm};
pub use linear::{linear, linears};
pub use norm::{plain_norm_heads, rms_norm, rms_norm_heads};
pub use rope::{rope, rope_at, rope_back};
pub use route::{Route, route, route_by_table};
pub use rows::{from_rows, rows};
pub use streams::{collapse, expand, spread_streams, weigh_streams};
pub use swiglu::swiglu_linear;
pub use whole_attention::{WholeAttention, whole_attention};

use wels_device::{Device, Pictures};

/// The operations of networks of pictures.
///
/// # Panics
/// If the device has none, which opening a model has refused.
fn pictures(device: &dyn Device) -> &dyn Pictures {
    device.images().expect("a device with the operations of images")
}
