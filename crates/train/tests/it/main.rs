//! The crate's integration tests.

mod grpo;

mod sft;

mod trainer;
