//! The crate's integration tests.

mod grpo;

mod distil;

mod rl;

mod sft;

mod trainer;
