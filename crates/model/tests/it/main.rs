//! Tests of whole models.

mod bits;
mod cached;
mod gradients;
mod oracle;
mod shapes;
