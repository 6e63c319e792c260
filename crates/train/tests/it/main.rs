//! The crate's integration tests.

mod grpo;

mod janus;

mod distil;

mod ranks;

mod episodes;

mod expert_parallel;

mod emulator;

mod linked;

mod naive;

mod rl;

mod sft;

mod trainer;

mod vq;
