//! Bugs planted in the kernels, one at a time: each is found by what the other tests look at.
//!
//! Every second is built and looked for, all of them with `WELS_ALL_BUGS=1`; that each can be planted is seen always.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::{env, fs, thread};

use wels_cuda::Cuda;
use wels_cuda::launch::emulator::Emulator;
use wels_cuda::launch::signature;
use wels_device::Device;

use crate::lab::{Outputs, TOLERANCE, difference, emulator};
use crate::{attention, experts, head, paged, products, quantised, rows, tensor_cores, weights};

/// A change of a file, and the work that it must show in.
struct Planted {
    what: &'static str,
    /// Whose kernels are built anew.
    file: &'static str,
    /// The file that is changed: the same, or one that it includes.
    changed: &'static str,
    from: &'static str,
    to: &'static str,
    work: fn(&Arc<dyn Device>) -> Outputs,
}

const PLAIN: &str = "attention/plain.cu";
const PRODUCTS: &str = "products/plain.cu";

const ALL: &[Planted] = &[
    Planted {
        what: "no barrier before another thread's sums are stored",
        file: PLAIN,
        changed: PLAIN,
        from: "  __syncthreads();\n  int64_t t = j0 + j;",
        to: "  int64_t t = j0 + j;",
        work: attention::some,
    },
    Planted {
        what: "no barrier behind the loads of keys",
        file: PLAIN,
        changed: "attend.cuh",
        from: "value(j0 + at / v, at % v);\n      __syncthreads();",
        to: "value(j0 + at / v, at % v);",
        work: attention::some,
    },
    Planted {
        what: "no barrier behind the weights",
        file: PLAIN,
        changed: "attend.cuh",
        from: "= p;\n      __syncthreads();",
        to: "= p;",
        work: attention::some,
    },
    Planted {
        what: "a query does not see itself",
        file: PLAIN,
        changed: PLAIN,
        from: "t0 + lane >= j0 + j",
        to: "t0 + lane > j0 + j",
        work: attention::some,
    },
    Planted {
        what: "a key's gradients go on behind its window",
        file: PLAIN,
        changed: PLAIN,
        from: "to = j0 + j - t0 + window < there ? j0 + j - t0 + window : there;",
        to: "to = there;",
        work: attention::some_with_a_window,
    },
    Planted {
        what: "a window of one key less",
        file: PLAIN,
        changed: "attend.cuh",
        from: "last - (j0 + lane) < window",
        to: "last - (j0 + lane) < window - 1",
        work: attention::some_with_a_window,
    },
    Planted {
        what: "a tile is loaded while the last one is multiplied",
        file: PRODUCTS,
        changed: PRODUCTS,
        from: "k0 += STEP) {\n    __syncthreads();",
        to: "k0 += STEP) {",
        work: products::some,
    },
    Planted {
        what: "no guard of the columns",
        file: PRODUCTS,
        changed: PRODUCTS,
        from: "if (i0 + i < m && j0 + j < n) c(i0 + i, j0 + j) =",
        to: "if (i0 + i < m) c(i0 + i, j0 + j) =",
        work: products::some,
    },
    Planted {
        what: "a product that goes on from what it should not",
        file: PRODUCTS,
        changed: PRODUCTS,
        from: "go_on && i0 + i < m",
        to: "i0 + i < m",
        work: products::some,
    },
    Planted {
        what: "a term too few",
        file: PRODUCTS,
        changed: PRODUCTS,
        from: "? k - k0 : STEP;",
        to: "? k - k0 : STEP - 1;",
        work: products::some,
    },
    Planted {
        what: "an expert's next slot moves on before all lanes have read it",
        file: "experts.cu",
        changed: "experts.cu",
        from: "- 1)) : 0;\n    __syncwarp();",
        to: "- 1)) : 0;",
        work: experts::many,
    },
    Planted {
        what: "shares of the scores added while they are computed",
        file: "experts.cu",
        changed: "experts.cu",
        from: "    __syncthreads();\n  }\n  if (warp > 0 || i >= e) return;",
        to: "  }\n  if (warp > 0 || i >= e) return;",
        work: experts::long_sequence,
    },
    Planted {
        what: "chunks that do not go on from those before",
        file: "experts.cu",
        changed: "experts.cu",
        from: "before = total + sum - count",
        to: "before = total",
        work: experts::many,
    },
    Planted {
        what: "of equals the last",
        file: "experts.cu",
        changed: "experts.cu",
        from: "(other == mine && j < i)",
        to: "(other == mine && j > i)",
        work: experts::ties,
    },
    Planted {
        what: "partial sums read while they are written",
        file: "head.cu",
        changed: "head.cu",
        from: "exponentials(of)); });\n  __syncthreads();",
        to: "exponentials(of)); });",
        work: head::some,
    },
    Planted {
        what: "another order of sums",
        file: "rows.cu",
        changed: "math.cuh",
        from: "for (int half = 8; half; half /= 2) v += __shfl_xor_sync",
        to: "for (int half = 1; half < 16; half *= 2) v += __shfl_xor_sync",
        work: rows::some,
    },
    Planted {
        what: "no guard of the elements",
        file: "rows.cu",
        changed: "rows.cu",
        from: "if (i < n) y[i] += x[i];",
        to: "y[i] += x[i];",
        work: rows::some,
    },
    Planted {
        what: "rows' terms added while they are loaded",
        file: "rows.cu",
        changed: "rows.cu",
        from: "    __syncthreads();\n  }\n  if (warp == 0",
        to: "  }\n  if (warp == 0",
        work: rows::gradient,
    },
    Planted {
        what: "new tokens without their past",
        file: "attention/paged.cu",
        changed: "attention/paged.cu",
        from: "tile[3], tile[1], scale, cap, window,",
        to: "tile[3], 0, scale, cap, window,",
        work: paged::some,
    },
    Planted {
        what: "fifth bits of the wrong numbers",
        file: "products/quantised.cu",
        changed: "products/blocks.cuh",
        from: "(b[16 + i % 32] >> (i / 32) & 1) << 4",
        to: "(b[16 + i % 32] >> (i / 64) & 1) << 4",
        work: weights::fifth_bits,
    },
    Planted {
        what: "weights over those that wgmma still reads",
        file: QUANTISED,
        changed: IN_QUANTISED,
        from: "wgmma_wait<0>();  // which still reads `a`",
        to: "",
        work: quantised::batches,
    },
    Planted {
        what: "weights are read before they are there",
        file: QUANTISED,
        changed: IN_QUANTISED,
        from: "mbar_wait(full + first * 2, 0);",
        to: "",
        work: quantised::batches,
    },
    Planted {
        what: "a segment is not added",
        file: QUANTISED,
        changed: IN_QUANTISED,
        from: "for (int s = 0; s < (int)gridDim.x; s++)",
        to: "for (int s = 1; s < (int)gridDim.x; s++)",
        work: quantised::batches,
    },
];

const QUANTISED: &str = "products/packed/hopper_q4_0.cu";
const IN_QUANTISED: &str = "products/packed.cuh";

const HOPPER: &str = "products/hopper.cu";
const IN_HOPPER: &str = "products/hopper.cuh";
const AMPERE: &str = "products/ampere.cu";
const IN_AMPERE: &str = "products/ampere.cuh";

/// In kernels whose sums have an order of their own.
const OF_TENSOR_CORES: &[Planted] = &[
    Planted {
        what: "a stage is read before it has landed",
        file: HOPPER,
        changed: IN_HOPPER,
        from: "mbar_wait(full + at % R::STAGES * 8, at / R::STAGES & 1);",
        to: "",
        work: tensor_cores::by_wgmma,
    },
    Planted {
        what: "a stage is loaded before it has been read",
        file: HOPPER,
        changed: IN_HOPPER,
        from: "mbar_wait(empty + s * 8, (at / R::STAGES & 1) ^ 1);",
        to: "",
        work: tensor_cores::by_wgmma,
    },
    Planted {
        what: "the parity of empty stages",
        file: HOPPER,
        changed: IN_HOPPER,
        from: "(at / R::STAGES & 1) ^ 1",
        to: "at / R::STAGES & 1",
        work: tensor_cores::by_wgmma,
    },
    Planted {
        what: "rows of the next sequence in a step",
        file: HOPPER,
        changed: IN_HOPPER,
        from: "if (RAGGED_K && count < BK) clear_rows<BN>(stage, count);",
        to: "",
        work: tensor_cores::by_wgmma,
    },
    Planted {
        what: "zeros that tensor cores may not see yet",
        file: HOPPER,
        changed: IN_HOPPER,
        from: "fence_async();",
        to: "",
        work: tensor_cores::by_wgmma,
    },
    Planted {
        what: "no fence before wgmma",
        file: HOPPER,
        changed: IN_HOPPER,
        from: "wgmma_fence();",
        to: "",
        work: tensor_cores::by_wgmma,
    },
    Planted {
        what: "a row too many is stored",
        file: HOPPER,
        changed: IN_HOPPER,
        from: "if (r < rows && c < cols) store2",
        to: "if (r <= rows && c < cols) store2",
        work: tensor_cores::by_wgmma,
    },
    Planted {
        what: "tiles of the third of several products",
        file: HOPPER,
        changed: "products/tiles.cuh",
        from: "at -= at < end0 ? 0 : at < end1 ? end0 : end1;",
        to: "at -= at < end0 ? 0 : end0;",
        work: tensor_cores::by_lists,
    },
    Planted {
        what: "the second of several terms of a sum taken twice",
        file: HOPPER,
        changed: IN_HOPPER,
        from: "*b = pick(of.b, which);",
        to: "*b = pick(of.b, which ? 1 : 0);",
        work: tensor_cores::by_lists,
    },
    Planted {
        what: "a step is read before it is copied",
        file: AMPERE,
        changed: IN_AMPERE,
        from: "cp_async_wait<AMPERE_STAGES - 2>();",
        to: "cp_async_wait<AMPERE_STAGES - 1>();",
        work: tensor_cores::by_mma,
    },
    Planted {
        what: "no barrier behind a step's copies",
        file: AMPERE,
        changed: IN_AMPERE,
        from: "__syncthreads();  // the step's numbers are there",
        to: "  // the step's numbers are there",
        work: tensor_cores::by_mma,
    },
    Planted {
        what: "fragments of the right operand in the left one's order",
        file: AMPERE,
        changed: IN_AMPERE,
        from: "lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));\n#pragma unroll",
        to: "lane % 16, kk * 2 + lane / 16));\n#pragma unroll",
        work: tensor_cores::by_mma,
    },
];

/// In kernels of activations in bf16, whose results are rounded.
const OF_BF16: &[Planted] = &[
    Planted {
        what: "pieces taken whole where they are not",
        file: "rows_bf16.cu",
        changed: "eight.cuh",
        from: "if (wide) f((int64_t)row",
        to: "if (cols > 0) f((int64_t)row",
        work: rows::in_bf16,
    },
    Planted {
        what: "the numbers behind the last whole piece are left out",
        file: "rows_bf16.cu",
        changed: "eight.cuh",
        from: "else if (i < n) f(i,",
        to: "else if (i < 0) f(i,",
        work: rows::in_bf16,
    },
    Planted {
        what: "no barrier between a row's warps",
        file: "rows_bf16.cu",
        changed: "rows_bf16.cu",
        from: "= v;\n  __syncthreads();\n  v = scratch[first];",
        to: "= v;\n  v = scratch[first];",
        work: rows::in_bf16,
    },
    Planted {
        what: "sums of warps of another row",
        file: "rows_bf16.cu",
        changed: "rows_bf16.cu",
        from: "first = warp / warps * warps;",
        to: "first = 0;",
        work: rows::in_bf16,
    },
    Planted {
        what: "groups' parts added while they are loaded",
        file: "rows_bf16.cu",
        changed: "rows_bf16.cu",
        from: "    __syncthreads();\n    int count",
        to: "    int count",
        work: rows::in_bf16,
    },
    Planted {
        what: "a gradient that does not go on from what it should",
        file: "rows_bf16.cu",
        changed: "rows_bf16.cu",
        from: "if (go_on) piece.numbers(dx",
        to: "if (!go_on) piece.numbers(dx",
        work: rows::in_bf16,
    },
    Planted {
        what: "the last of more experts than are loaded at a time",
        file: "experts_bf16.cu",
        changed: "eight.cuh",
        from: "for (; t < end; t += FEW) {",
        to: "for (; t + FEW <= end; t += FEW) {",
        work: experts::in_bf16,
    },
    Planted {
        what: "the second half of a warp's sum",
        file: "experts_bf16.cu",
        changed: "experts_bf16.cu",
        from: "for (int half = 16; half; half /= 2) s +=",
        to: "for (int half = 8; half; half /= 2) s +=",
        work: experts::in_bf16,
    },
];

const PACKED: &str = "attention/hopper_forward.cu";
const BACKWARD: &str = "attention/hopper_backward.cu";
const PAGED: &str = "attention/hopper_paged.cu";

/// In attention in bf16, on Hopper.
const OF_ATTENTION: &[Planted] = &[
    Planted {
        what: "keys are read before they have landed",
        file: PACKED,
        changed: "attention/forward.cuh",
        from: "mbar_wait(k_full + 8 * st, j / KV_STAGES & 1);",
        to: "",
        work: attention::some_in_bf16,
    },
    Planted {
        what: "the parity of places for values",
        file: PACKED,
        changed: "attention/forward.cuh",
        from: "mbar_wait(v_empty + 8 * s, ((j - 1) / KV_STAGES & 1) ^ 1);",
        to: "mbar_wait(v_empty + 8 * s, (j - 1) / KV_STAGES & 1);",
        work: attention::some_in_bf16,
    },
    Planted {
        what: "values are loaded over those that are read",
        file: PACKED,
        changed: "attention/forward.cuh",
        from: "mbar_wait(v_empty + 8 * s, ((j - 1) / KV_STAGES & 1) ^ 1);",
        to: "",
        work: attention::some_in_bf16,
    },
    Planted {
        what: "a row of the next sequence is written",
        file: PACKED,
        changed: "attention/forward.cuh",
        from: "if (at >= length) continue;",
        to: "if (at > length) continue;",
        work: attention::some_in_bf16,
    },
    Planted {
        what: "no fence before the gradients' wgmma",
        file: BACKWARD,
        changed: "attention/backward.cuh",
        from: "wgmma_fence();",
        to: "",
        work: attention::some_in_bf16,
    },
    Planted {
        what: "queries are loaded over those that are read",
        file: BACKWARD,
        changed: "attention/backward.cuh",
        from: "mbar_wait(empty + 8 * s, (j / B::STAGES & 1) ^ 1);",
        to: "",
        work: attention::some_in_bf16,
    },
    Planted {
        what: "no barrier behind the copies of a tile of pages",
        file: PAGED,
        changed: "attention/paged.cuh",
        from: "__syncthreads();  // the tile is there for all",
        to: "  // the tile is there for all",
        work: paged::some_in_bf16,
    },
    Planted {
        what: "copies that wgmma may not see yet",
        file: PAGED,
        changed: "attention/paged.cuh",
        from: "fence_async();",
        to: "",
        work: paged::some_in_bf16,
    },
    Planted {
        what: "rows of two splits are not joined",
        file: "attention/sums.cu",
        changed: "attention/sums.cu",
        from: "if (splits == 1) return;",
        to: "if (splits <= 2) return;",
        work: paged::some_in_bf16,
    },
    Planted {
        what: "a sequence's first token goes to the one before it",
        file: "attention/append.cu",
        changed: "attention/append.cu",
        from: "new_starts[mid] <= row",
        to: "new_starts[mid] < row",
        work: paged::some_in_bf16,
    },
    Planted {
        what: "latents are read before they are copied",
        file: "attention/hopper_latent.cu",
        changed: "attention/latent.cuh",
        from: "cp_async_wait<0>();",
        to: "",
        work: paged::some_latents_in_bf16,
    },
];

const BY_MMA: &str = "attention/ampere.cu";

/// In attention in bf16, on Ampere.
const OF_ATTENTION_80: &[Planted] = &[
    Planted {
        what: "no barrier behind the copies of a tile",
        file: BY_MMA,
        changed: "attention/ampere.cuh",
        from: "__syncthreads();\n    load(j + 1);",
        to: "load(j + 1);",
        work: attention::some_in_bf16,
    },
    Planted {
        what: "a key does not see its own query",
        file: BY_MMA,
        changed: "attention/ampere.cuh",
        from: "q_at >= row + 8 * (i >> 1 & 1)",
        to: "q_at > row + 8 * (i >> 1 & 1)",
        work: attention::some_in_bf16,
    },
    Planted {
        what: "a tile of latents is not waited for",
        file: BY_MMA,
        changed: "attention/ampere.cuh",
        from: "cp_async_wait<0>();",
        to: "",
        work: paged::some_latents_in_bf16,
    },
];

/// How far elements of bf16 attention may be off; of 1 where they are smaller.
const BF16_ELEMENTS: f32 = 0.05;

#[test]
fn every_planted_bug_is_found() {
    if emulator().is_none() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let groups = [
        (ALL, 0.0, (9, 0)),
        (OF_TENSOR_CORES, TOLERANCE, (9, 0)),
        (OF_BF16, 1.0 / 64.0, (9, 0)),
        (OF_ATTENTION, BF16_ELEMENTS, (9, 0)),
        (OF_ATTENTION_80, BF16_ELEMENTS, (8, 0)),
    ];
    let all = groups.iter().flat_map(|(all, tolerance, capability)| all.iter().map(|it| (it, *tolerance, *capability)));
    let (all, missed) = (Mutex::new(all.enumerate()), Mutex::new(Vec::new()));
    let next = || all.lock().unwrap().next();
    // A kernel is compiled and run by one core, so each of them looks for another bug.
    let look = || {
        let naive: Arc<dyn Device> = wels_cpu::naive::Naive::new();
        while let Some((number, (planted, tolerance, capability))) = next() {
            let directory = directory.path().join(number.to_string());
            plant(planted, &directory);
            if number % 2 == 1 && env::var_os("WELS_ALL_BUGS").is_none() {
                continue;
            }
            let library = build(planted, &directory);
            match found(planted, &library, capability, &(planted.work)(&naive), tolerance) {
                Some(how) => println!("{}: {how}", planted.what),
                None => missed.lock().unwrap().push(planted.what),
            }
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| drop(scope.spawn(look)));
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Without a bug there is nothing to find at this tolerance.
#[test]
fn attention_in_bf16_without_bugs() {
    let naive: Arc<dyn Device> = wels_cpu::naive::Naive::new();
    let works = [attention::some_in_bf16, paged::some_in_bf16, paged::some_latents_in_bf16];
    for (major, minor) in [(9, 0), (8, 0)] {
        let Some(emulator) = emulator() else { return };
        emulator.set_capability(major, minor);
        let device: Arc<dyn Device> = Cuda::on(emulator);
        for (number, work) in works.iter().enumerate() {
            let difference = difference(&work(&naive), &work(&device), BF16_ELEMENTS);
            assert_eq!(difference, None, "work {number} on {major}.{minor}");
        }
    }
}

/// How a bug shows in one of eight orders.
fn found(
    planted: &Planted,
    library: &Path,
    (major, minor): (u32, u32),
    expected: &Outputs,
    tolerance: f32,
) -> Option<String> {
    (1..=8).find_map(|seed| {
        let work = planted.work;
        let library = library.to_path_buf();
        let got = thread::spawn(move || {
            let emulator = Emulator::with_kernels_of(&library, seed).expect("a library");
            emulator.set_capability(major, minor);
            work(&(Cuda::on(emulator) as Arc<dyn Device>))
        });
        match got.join() {
            Err(panic) => Some(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
            Ok(got) => difference(expected, &got, tolerance),
        }
    })
}

/// A shared library of one file's kernels with the bug.
fn plant(planted: &Planted, directory: &Path) {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    copy(&kernels, directory);
    let changed = directory.join(planted.changed);
    let text = fs::read_to_string(&changed).expect("a kernel file");
    let count = text.matches(planted.from).count();
    assert!(count > 0, "{}: {} has no `{}`", planted.what, planted.changed, planted.from);
    fs::write(&changed, text.replace(planted.from, planted.to)).expect("a directory of one's own");
}

/// The library of the kernels in a directory in which a bug was [planted](plant).
fn build(planted: &Planted, directory: &Path) -> PathBuf {
    let text = fs::read_to_string(directory.join(planted.file)).expect("a kernel file");
    let names: Vec<String> = signature::parse(&text).into_iter().map(|kernel| kernel.name).collect();
    fs::write(directory.join("wrapper.cpp"), signature::wrapper(planted.file, &names)).expect("a directory");
    fs::write(directory.join("table.cpp"), signature::table(&names)).expect("a directory");
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_string());
    let mut command = Command::new(compiler);
    command.args(["-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-w", "-I."]);
    command.args(["wrapper.cpp", "table.cpp", "emulator.cpp", "-o", "kernels.so"]).current_dir(directory);
    let output = command.output().expect("the compiler that has built the emulator");
    assert!(output.status.success(), "{}: {}", planted.what, String::from_utf8_lossy(&output.stderr));
    directory.join("kernels.so")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory of one's own");
    for entry in fs::read_dir(from).expect("the kernels").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a directory of one's own");
        }
    }
}
