"""A training step over two ranks, beside one of as many threads and beside PyTorch's DistributedDataParallel over gloo.

    cargo build --release --features mpi
    python bench/peers/ranks.py [--rounds 3] [--steps 12] [--python PYTHON]

Each round does `recipes/moe-28m.toml` with two gradient shards: as one process with two threads; as two ranks of
`mpirun` with one thread each, data parallel and with experts over ranks; and the same model with transformers' experts
under DDP, two processes of one thread. A program's figure is the median over the rounds of its median step; the order
turns by one from round to round. Prints a Markdown table. Run it on an idle machine with two cores to spare.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402
from compare import environment, peer, versions  # noqa: E402

MPIRUN = "mpirun -q --allow-run-as-root --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -np 2".split()


def own(launch: list[str], options: list[str], binary: Path, folder: Path) -> Callable[[int], float]:
    """Measures the steps of a run, but for the first two."""

    def measure(steps: int) -> float:
        changes = {"pretrain.gradient_shards": 2, "pretrain.steps": steps + 2, "run.name": "ranks"}
        recipe = folder / "ranks.toml"
        recipe.write_text(wels.recipe_variant(wels.ROOT / "recipes" / "moe-28m.toml", changes))
        with tempfile.TemporaryDirectory(dir=folder) as runs:
            command = [*launch, binary, "run", recipe, "--runs", runs, *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            lines = Path(runs, "ranks", "pretrain", "metrics.jsonl").read_text().splitlines()
        return wels.median([json.loads(line)["seconds"] for line in lines[2:]])

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--python", type=Path, help="an environment with the pinned packages, instead of .venv")
    parser.add_argument("--wels", type=Path, default=wels.ROOT / "target" / "release" / "wels", help="built with MPI")
    arguments = parser.parse_args()
    python = arguments.python or environment()
    ddp = peer(python, "moe", "--ranks", "2", "--threads", "1")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows: list[tuple[str, Callable[[int], float]]] = [
            ("Wels, 1 rank of 2 threads", own([], ["--threads", "2"], arguments.wels, folder)),
            ("Wels, 2 ranks of 1 thread", own(MPIRUN, ["--threads", "1"], arguments.wels, folder)),
            (
                "Wels, 2 ranks of 1 thread, experts over ranks",
                own(MPIRUN, ["--threads", "1", "--expert-parallel", "2"], arguments.wels, folder),
            ),
            ("transformers under DDP, gloo, 2 ranks of 1 thread", lambda steps: ddp(steps)[0]),
        ]
        medians: list[list[float]] = [[] for _ in rows]
        for turn in range(arguments.rounds):
            for i in range(len(rows)):
                at = (i + turn) % len(rows)
                medians[at].append(rows[at][1](arguments.steps))
                print(f"round {turn + 1}: {rows[at][0]}: {medians[at][-1]:.3f} s", file=sys.stderr)
    print(f"{wels.machine()}; {versions(python)}; {arguments.rounds} rounds of {arguments.steps} steps\n")
    print("| program | s a step | range of rounds | speed against 1 rank of 2 threads |\n|---|---|---|---|")
    first = wels.median(medians[0])
    for (name, _), seconds in zip(rows, medians):
        middle, spread = wels.median(seconds), f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(f"| {name} | {middle:.3f} | {spread} | {first / middle:.2f} |")


if __name__ == "__main__":
    main()
