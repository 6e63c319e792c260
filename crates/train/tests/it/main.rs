//! The crate's integration tests.

mod grpo;

mod rl;

mod sft;

mod trainer;
