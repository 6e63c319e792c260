//! Threads, instruction set, micro-batches and recomputation change no bit of the weights.

use crate::lab::Lab;

#[test]
fn knobs_of_speed_and_memory_change_no_bit() {
    let lab = Lab::new();
    let mut expected = None;
    for isa in wels_kernels::isa::Isa::all_available() {
        for threads in ["1", "2"] {
            for micro_batch in ["1", "4"] {
                let name = format!("{}-{threads}-{micro_batch}", isa.name());
                let recompute = if threads == "1" { "recompute_layers = [0, 2]\n" } else { "" };
                let micro = format!("{recompute}micro_batch = {micro_batch}");
                let recipe = lab.recipe(&name, &[("micro_batch = 4", &micro)]);
                let output =
                    lab.command(&["run", &recipe, "--threads", threads]).env("WELS_ISA", isa.name()).output().unwrap();
                assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
                let result = (lab.weights(&name), lab.metrics(&name));
                let expected = expected.get_or_insert_with(|| result.clone());
                assert_eq!(expected.0, result.0, "weights of {name}");
                assert_eq!(expected.1, result.1, "metrics of {name}");
            }
        }
    }
}
