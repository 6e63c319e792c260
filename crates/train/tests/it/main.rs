//! The crate's integration tests.

mod grpo;

mod distil;

mod ranks;

mod rl;

mod sft;

mod trainer;
