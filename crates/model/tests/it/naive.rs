//! Another device: nothing above it looks into memory, waits for what it does not need, or knows which one it is.

use std::process::Command;

use wels_cpu::testing::{VARIABLE, emulator};

fn everything_passes_on(device: &str, left_out: &[&str]) {
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    // The others choose their devices themselves, or need none.
    let others = ["everything_passes", "never_panic", "fp8", "vq::threads"];
    again.args(others.iter().chain(left_out).flat_map(|name| ["--skip", name]));
    again.args(["--test-threads", "2", "-q"]).env(VARIABLE, device);
    let output = again.output().expect("this program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn everything_passes_on_the_naive_device() {
    // Gradients that are autograd's need no second look.
    everything_passes_on("naive", &["finite_differences"]);
}

/// The kernels for cards have the processor's bits, in whatever order blocks, warps and lanes are stepped.
#[test]
fn everything_passes_on_the_emulated_card() {
    if emulator(1).is_some() {
        // The processor's threads are not the card's, gradients that are autograd's need no second look, and cards
        // learn nothing beside packed weights.
        let left_out = ["finite_differences", "threads_and_instruction_sets", "adapter::a_base", "beside_blocks"];
        everything_passes_on("emulator:7", &left_out);
    }
}
