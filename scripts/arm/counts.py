"""Instructions of products with quantised weights on 64-bit Arm, counted under QEMU; beside llama.cpp's, if given.

    python3 scripts/arm/counts.py [--llama SOURCE]

Each product runs a few times and twice as often, and the difference is counted, so that starting and packing are left
out; quantising x is in it, on both sides. Printed are instructions for a block of 32 weights and a row of x. Counts
say nothing of the time that an instruction takes, and nothing of memory.

SOURCE is the folder of llama.cpp's source, such as `vendor/llama.cpp` of the source distribution of PyPI's
llama-cpp-python 0.3.36. Of it, the product of one row (`ggml_vec_dot`) and those of packed weights (`ggml_gemv`,
`ggml_gemm`) are compiled with the extensions that ours use.

Takes what scripts/arm/test.sh takes, gcc, Debian's qemu-user (the static one has no plugins) and, for llama.cpp,
g++-aarch64-linux-gnu.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = "aarch64-unknown-linux-gnu"
SYSROOT = "/usr/aarch64-linux-gnu"
K, N = 1024, 256
FORMATS = ("Q4_0", "Q8_0")
ROWS = (1, 4, 16)
# llama.cpp's builds of it: Arm's architecture with the extensions.
SETS = {"neon": "armv8-a", "dotprod": "armv8.2-a+dotprod", "i8mm": "armv8.2-a+dotprod+i8mm"}


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], check=True, text=True, capture_output=True, **options)


def count(plugin: Path, *command: object, **environment: str) -> int:
    """Instructions of a program."""
    emulator = ["qemu-aarch64", "-cpu", "max", "-L", SYSROOT, "-plugin", plugin, "-d", "plugin"]
    printed = run(*emulator, *command, env=os.environ | environment).stderr
    found = re.search(r"instructions: (\d+)", printed)
    if not found:
        sys.exit(f"QEMU counted nothing: {printed.strip()}")
    return int(found[1])


def tests() -> Path:
    """The kernels' test program, optimised."""
    linker = {"CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": "aarch64-linux-gnu-gcc"}
    folder = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "arm"
    options = ["--release", "--package", "wels-kernels", "--target", TARGET, "--test", "it", "--no-run"]
    environment = os.environ | linker | {"CARGO_TARGET_DIR": str(folder)}
    printed = run("cargo", "test", *options, env=environment, cwd=HERE.parents[1]).stderr
    found = re.search(r"Executable .*\((.*)\)", printed)
    if not found:
        sys.exit(f"cargo names no test program: {printed}")
    return HERE.parents[1] / found[1]


def llama(source: Path, folder: Path, march: str) -> Path:
    """A program that multiplies with llama.cpp's kernels."""
    program = folder / f"llama-{march}"
    cpu = source / "ggml/src/ggml-cpu"
    include = [source / "ggml/include", source / "ggml/src", cpu]
    flags = ["-O3", "-DNDEBUG", "-DGGML_USE_CPU_REPACK", "-D_GNU_SOURCE", f"-march={march}", "-w", "-fno-finite-math-only"]
    flags += [f"-I{path}" for path in include]
    objects = []
    for file in (cpu / "arch/arm/quants.c", cpu / "quants.c", source / "ggml/src/ggml-quants.c"):
        objects.append(folder / f"{file.parent.name}-{file.name}-{march}.o")
        run("aarch64-linux-gnu-gcc", "-std=gnu11", *flags, "-c", file, "-o", objects[-1])
    for file in (cpu / "arch/arm/repack.cpp", cpu / "repack.cpp", HERE / "llama.cpp"):
        objects.append(folder / f"{file.parent.name}-{file.name}-{march}.o")
        run("aarch64-linux-gnu-g++", "-std=gnu++17", *flags, "-c", file, "-o", objects[-1])
    unresolved = "-Wl,--unresolved-symbols=ignore-all"  # the rest of ggml, which these kernels do not reach
    run("aarch64-linux-gnu-g++", "-static", unresolved, *objects, "-o", program, "-lm")
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, metavar="SOURCE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = folder / "instructions.so"
        run("gcc", "-shared", "-fPIC", "-O2", "-o", plugin, HERE / "instructions.c")
        ours = tests()
        print(f"instructions for 32 weights and a row of x, K = {K}, N = {N}")
        heads = ["format", "instructions", "rows of x", "Wels"] + ["llama.cpp's best", "which"] * bool(arguments.llama)
        print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        theirs = {isa: llama(arguments.llama, folder, march) for isa, march in SETS.items()} if arguments.llama else {}
        for form in FORMATS:
            for isa in SETS:
                for rows in ROWS:
                    cells = [form, isa, str(rows)]
                    blocks = K // 32 * N * rows

                    def of_ours(times: int) -> int:
                        test = ["--ignored", "--exact", "quant::a_product_to_be_counted", "--test-threads", "1"]
                        return count(plugin, ours, *test, WELS_ISA=isa, WELS_COUNT=f"{form} {rows} {K} {N} {times}")

                    cells.append(f"{(of_ours(8) - of_ours(4)) / 4 / blocks:.1f}")
                    best: list[tuple[float, str]] = []
                    for kernel in ("dot", "4x4", "4x8") if theirs else ():

                        def of_theirs(times: int) -> int:
                            return count(plugin, theirs[isa], form, kernel, rows, K, N, times)

                        try:
                            best.append(((of_theirs(8) - of_theirs(4)) / 4 / blocks, kernel))
                        except subprocess.CalledProcessError:
                            continue  # has no such kernel
                    if best:
                        cells += [f"{min(best)[0]:.1f}", min(best)[1]]
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
