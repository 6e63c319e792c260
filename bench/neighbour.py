"""What a busy neighbour costs: steps of training and answers, alone and beside a process that keeps one core busy.

    python bench/neighbour.py [--recipe recipes/moe-28m.toml] [--file MODEL.gguf] [--rounds 3] [--wels PROGRAM]

The neighbour is a loop of equal priority. Each round measures alone, then beside it, with as many threads as cores. On
two cores a fair share beside one neighbour is 4/3 of a core, with which work that can be divided at will takes 1.5
times as long. Prints medians of the rounds. Python's standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import wels


@contextmanager
def neighbour() -> Iterator[None]:
    """A core that is kept busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=wels.ROOT / "recipes" / "moe-28m.toml")
    parser.add_argument("--file", type=Path, help="a model whose answers are measured too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()

    def step() -> float:
        return wels.bench_train(binary, arguments.recipe, {}, 10)["seconds_per_step"]

    def token() -> float:
        command = [binary, "bench", "decode", arguments.file, "--json", "--prompt", "64", "--tokens", "256"]
        printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
        return 1 / json.loads(printed)["decode_tokens_per_second"]

    work: dict[str, Callable[[], float]] = {f"a step of {arguments.recipe.stem}": step}
    if arguments.file:
        work[f"a token of {arguments.file.stem}"] = token
    print(f"{wels.machine()}; fair beside one neighbour: {(os.cpu_count() + 1) / os.cpu_count():.2f}×")
    print("\n| | alone | beside one neighbour | times as long |\n|---|---|---|---|")
    for what, measure in work.items():
        alone, beside = [], []
        for _ in range(arguments.rounds):
            alone.append(measure())
            with neighbour():
                beside.append(measure())
        ratio = statistics.median(beside) / statistics.median(alone)
        cells = [f"{1000 * statistics.median(side):.1f} ms" for side in (alone, beside)]
        each = ", ".join(f"{b / a:.2f}" for a, b in zip(alone, beside, strict=True))
        print(f"| {what} | {cells[0]} | {cells[1]} | {ratio:.2f} ({each}) |", flush=True)


if __name__ == "__main__":
    main()
