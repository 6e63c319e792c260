"""Training steps of Wels beside those of PyTorch and transformers, on this machine, in turns.

    python bench/peers/compare.py [--rounds 5] [--steps 7] [--isa avx2] [--output FILE.md]

One command: makes the pinned environment `bench/peers/.venv` the first time (some 6 GB, for PyTorch's default wheel),
builds Wels, and prints a Markdown table. Each round starts every contender once, in an order that is turned by one from
round to round; a contender's figure is the median over rounds of its median step, and the range is that of the rounds'
medians. A step is forward, backward and AdamW on 8 × 256 random tokens; two warm-up steps of each process are not
counted. Wels' step also takes the gradient's norm and clips, which the peers' does not. Run it on an idle machine:
PyTorch with two threads loses far more than its share when something else runs.

`--isa avx2` holds both sides to AVX2, as most processors have it: Wels by `WELS_ISA`, PyTorch's own kernels, oneDNN and
MKL by their variables. That is for f32 alone: bf16 is slower there for everybody, as nothing multiplies it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402

HERE = Path(__file__).resolve().parent
# What holds a side to AVX2.
AVX2 = {"WELS_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@dataclass
class Contender:
    """One program and setting, and what it took."""

    group: str
    name: str
    bar: str
    """What the ratio of the group's best peer in f32 to it has to be; empty for a peer."""
    measure: Callable[[int], tuple[float, str]]
    medians: list[float] = field(default_factory=list)
    note: str = ""

    def run(self, steps: int) -> None:
        seconds, self.note = self.measure(steps)
        self.medians.append(seconds)

    @property
    def seconds(self) -> float:
        return wels.median(self.medians)


def environment() -> Path:
    """The Python of the pinned environment."""
    folder = HERE / ".venv"
    python = folder / "bin" / "python"
    wanted = (HERE / "requirements.txt").read_text()
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print("making bench/peers/.venv", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "requirements.txt"], check=True)
        stamp.write_text(wanted)
    return python


def peer(python: Path, *arguments: str) -> Callable[[int], tuple[float, str]]:
    """Measures peer_step.py with these arguments."""

    def measure(steps: int) -> tuple[float, str]:
        command = [python, HERE / "peer_step.py", *arguments, "--steps", str(steps)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        report = json.loads(done.stdout.splitlines()[-1])
        return wels.median(report["seconds"]), f"{report['parameters']:,} parameters"

    return measure


def own(binary: Path, recipe: str, precision: str) -> Callable[[int], tuple[float, str]]:
    """Measures `wels bench train` on a shipped recipe."""

    def measure(steps: int) -> tuple[float, str]:
        path = wels.ROOT / "recipes" / recipe
        report = wels.bench_train(binary, path, {"pretrain.precision": precision}, steps)
        peak = report["peak_flops_per_second"] / 1e9
        note = f"{report['parameters']:,} parameters; {100 * report['mfu']:.0f}% of the f32 peak ({peak:.0f} GFLOP/s)"
        return report["seconds_per_step"], note

    return measure


def contenders(python: Path, binary: Path, avx2: bool) -> list[Contender]:
    """Everything that is measured. The peers' settings are the best of those tried, and what lies near them."""
    dense_bar, moe_bar = ("1.5", "1.7") if avx2 else ("1.3", "2.0")
    dense, moe = "dense 7.2M", "MoE 28M, 7M active"
    both_attentions = [("sdpa", "grouped_mm"), ("eager", "grouped_mm"), ("sdpa", "eager")]
    contenders = [
        Contender(dense, "PyTorch eager, f32", "", peer(python, "dense")),
        Contender(dense, "PyTorch eager, bf16 autocast", "", peer(python, "dense", "--precision", "bf16")),
        Contender(dense, "Wels, f32", dense_bar, own(binary, "dense-7m.toml", "f32")),
        Contender(dense, "Wels, bf16", "2.0", own(binary, "dense-7m.toml", "bf16")),
        *(
            Contender(
                moe,
                f"transformers, f32, experts {experts}, attention {attention}",
                "",
                peer(python, "moe", "--experts", experts, "--attention", attention),
            )
            for attention, experts in both_attentions
        ),
        Contender(moe, "transformers, bf16 autocast, experts grouped_mm", "", peer(python, "moe", "--precision", "bf16")),
        Contender(moe, "Wels, f32", moe_bar, own(binary, "moe-28m.toml", "f32")),
        Contender(moe, "Wels, bf16", "3.0", own(binary, "moe-28m.toml", "bf16")),
    ]
    return [contender for contender in contenders if not (avx2 and "bf16" in contender.name)]


def versions(python: Path) -> str:
    """Of everything that was compared."""
    code = "import torch, transformers; print(f'torch {torch.__version__}, transformers {transformers.__version__}')"
    peers = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    commit = ["git", "describe", "--always", "--dirty"]
    own = subprocess.run(commit, cwd=wels.ROOT, check=True, capture_output=True, text=True).stdout.strip()
    return f"{peers}, Wels {own}"


def table(rows: list[Contender]) -> str:
    """Markdown. The ratio is that of the group's best f32 peer to the row."""
    lines = [
        "| model | program | s a step | range of rounds | against the best f32 peer | bar | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        peers = [peer.seconds for peer in rows if peer.group == row.group and not peer.bar and "f32" in peer.name]
        ratio = f"{min(peers) / row.seconds:.2f}×" if peers else ""
        spread = f"{min(row.medians):.3f} to {max(row.medians):.3f}"
        bar = f"≥ {row.bar}×" if row.bar else ""
        lines.append(f"| {row.group} | {row.name} | {row.seconds:.3f} | {spread} | {ratio} | {bar} | {row.note} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--isa", choices=["best", "avx2"], default="best", help="the instructions of both sides")
    parser.add_argument("--only", default="", help="contenders whose model or name contains this")
    parser.add_argument("--python", type=Path, help="an environment with the pinned packages, instead of .venv")
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    parser.add_argument("--output", type=Path, help="write the report here too")
    arguments: Any = parser.parse_args()
    python = arguments.python or environment()
    binary = arguments.wels or wels.build()
    avx2 = arguments.isa == "avx2"
    if avx2:
        os.environ |= AVX2
    rows = [row for row in contenders(python, binary, avx2) if arguments.only in f"{row.group}: {row.name}"]
    for turn in range(arguments.rounds):
        for i in range(len(rows)):
            row = rows[(i + turn) % len(rows)]
            row.run(arguments.steps)
            print(f"round {turn + 1}: {row.group}, {row.name}: {row.medians[-1]:.3f} s", file=sys.stderr)
    held = ", both held to AVX2" if avx2 else ""
    head = f"{wels.machine()}{held}; 2 threads; {versions(python)}; {arguments.rounds} rounds of {arguments.steps} steps"
    report = f"{head}\n\n{table(rows)}\n"
    print(report)
    if arguments.output:
        arguments.output.write_text(report)


if __name__ == "__main__":
    main()
