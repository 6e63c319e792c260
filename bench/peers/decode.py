"""Prompts and answers of one stream, beside llama.cpp: the same GGUF files, the same threads, in turns.

    python bench/peers/decode.py FILE.gguf … --llama-bench PATH [--prompt 512] [--tokens 128] [--rounds 3] [--threads 2]

`llama-bench` is built natively from the source distribution of PyPI's llama-cpp-python 0.3.36 (cmake, GGML_NATIVE=ON).
Both read a prompt five times behind one that is not counted (the mean and the median of them), and answer behind the
prompt, with its keys and values in their caches. Prints a table of medians over the rounds with the ratio of the
medians, and Wels' share of the read bandwidth that it measured beside its steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402


def llama(arguments: argparse.Namespace, file: Path) -> tuple[float, float]:
    """Tokens a second of the prompt, and of the answer behind it."""

    def rate(*tests: object) -> float:
        command = [arguments.llama_bench, "-m", file, "-t", arguments.threads, "-o", "json", *tests]
        printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
        return json.loads(printed)[0]["avg_ts"]

    prompt = rate("-r", 5, "-p", arguments.prompt, "-n", 0)
    return prompt, rate("-r", 1, "-p", 0, "-n", arguments.tokens, "-d", arguments.prompt)


def ours(arguments: argparse.Namespace, binary: Path, file: Path) -> dict[str, float]:
    """What `wels bench decode` says."""
    command = [binary, "--threads", arguments.threads, "bench", "decode", file, "--json"]
    command += ["--prompt", arguments.prompt, "--tokens", arguments.tokens]
    printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return json.loads(printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()
    print(wels.machine())
    print("\n| file | prompt, llama.cpp | Wels | ratio | answer, llama.cpp | Wels | ratio | of read bandwidth |")
    print("|---|---|---|---|---|---|---|---|")
    for file in arguments.files:
        theirs, mine = [], []
        for _ in range(arguments.rounds):
            theirs.append(llama(arguments, file))
            mine.append(ours(arguments, binary, file))
        prompt, answer = (statistics.median(side) for side in zip(*theirs, strict=True))
        rate = {key: statistics.median(run[key] for run in mine) for key in mine[0] if isinstance(mine[0][key], float)}
        cells = [
            f"{prompt:.0f} | {rate['prompt_tokens_per_second']:.0f} | {rate['prompt_tokens_per_second'] / prompt:.2f}×",
            f"{answer:.0f} | {rate['decode_tokens_per_second']:.0f} | {rate['decode_tokens_per_second'] / answer:.2f}×",
            f"{rate['of_read_bandwidth']:.0%}",
        ]
        print(f"| {file.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
