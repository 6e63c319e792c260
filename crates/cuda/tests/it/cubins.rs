//! Kernels compiled for cards that are not there: no spills, and a table of what each takes.
//!
//! `cargo test -p wels-cuda --test it cubins -- --nocapture` prints the table.

use wels_cuda::kernels::SOURCES;
use wels_cuda::launch::nvrtc::{Nvrtc, Target};

#[test]
fn every_kernel_compiles_without_spills() {
    let nvrtc = match Nvrtc::open() {
        Ok(nvrtc) => nvrtc,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    println!("NVRTC {}.{}", nvrtc.version.0, nvrtc.version.1);
    let mut spilling = Vec::new();
    for capability in [(8, 0), (9, 0)] {
        let target = Target { capability };
        for source in SOURCES.iter().filter(|source| target.runs(source)) {
            let compiled =
                nvrtc.compile(source, target, true).unwrap_or_else(|error| panic!("{}: {error}", source.path));
            assert!(compiled.cubin.starts_with(b"\x7fELF"), "{} is no cubin", source.path);
            let usage = compiled.usage();
            assert!(!usage.is_empty(), "no report of {} in: {}", source.path, compiled.log);
            for it in usage {
                let name = target.name();
                println!(
                    "{name:7} {:24} {:24} {:4} registers {:5} stack",
                    source.path, it.kernel, it.registers, it.stack_bytes
                );
                if it.spill_bytes > 0 {
                    spilling.push(format!("{} on {name}: {} bytes", it.kernel, it.spill_bytes));
                }
            }
        }
    }
    assert!(spilling.is_empty(), "kernels that spill: {spilling:?}");
}
