//! Another device: nothing above it looks into memory, waits for what it does not need, or knows which one it is.

use std::process::Command;

use wels_cpu::testing::{VARIABLE, emulator};

fn everything_passes_on(device: &str, left_out: &[&str]) {
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    // The others choose their devices themselves.
    let others = ["everything_passes", "linked", "emulator"];
    again.args(others.iter().chain(left_out).flat_map(|name| ["--skip", name]));
    again.args(["--test-threads", "2", "-q"]).env(VARIABLE, device);
    let output = again.output().expect("this program runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn everything_passes_on_the_naive_device() {
    everything_passes_on("naive", &[]);
}

/// The kernels for cards have the processor's bits, in whatever order blocks, warps and lanes are stepped.
#[test]
fn everything_passes_on_the_emulated_card() {
    if emulator(1).is_some() {
        // Cards do not share experts yet; every kind of step is done over ranks, and so seen to be a function of its
        // arguments.
        let seen = ["expert_parallel", "a_student_becomes_like_its_teacher", "are_functions_of_seed_and_state"];
        everything_passes_on("emulator:7", &seen);
    }
}
