"""Compare perplexities with llama.cpp's on the same text and files.

    python perplexity.py FILE.gguf … --text TEXT.txt --llama-perplexity PATH [--wels ../../target/release/wels]
        [--window 512] [--bytes 60000] [--threads 2]

`llama-perplexity` is built from the source distribution of PyPI's llama-cpp-python 0.3.36. Both cut the text into
windows of --window tokens and count the second half of each (`wels score --window`). Prints a table, and fails if a
perplexity differs by more than 0.3%. Python's standard library alone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOUND = 0.003


def output(command: list) -> str:
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


def llama(arguments: argparse.Namespace, file: Path, text: Path) -> float:
    command = [arguments.llama_perplexity, "-m", file, "-f", text, "-c", arguments.window, "-t", arguments.threads]
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", output(command))
    assert found, "llama-perplexity gave no final estimate"
    return float(found[1])


def ours(arguments: argparse.Namespace, file: Path, text: Path) -> tuple[float, int]:
    """Perplexity, and the tokens that counted."""
    command = [arguments.wels, "--threads", arguments.threads, "score", file, "--file", text]
    command += ["--window", arguments.window, "--json"]
    printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    score = json.loads(printed)
    return score["ppl"], sum(logprob is not None for logprob in score["logprobs"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--llama-perplexity", type=Path, required=True)
    parser.add_argument("--wels", type=Path, default=ROOT / "target/release/wels")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--bytes", type=int, default=60_000, help="of the text's beginning")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        # llama.cpp drops a line end at the end of a file.
        text = Path(folder) / "text.txt"
        beginning = arguments.text.read_bytes()[: arguments.bytes].decode(errors="ignore").rstrip()
        text.write_text(beginning, encoding="utf-8", newline="")
        print("| file | tokens | llama.cpp | Wels | difference |\n|---|---|---|---|---|")
        for file in arguments.files:
            theirs = llama(arguments, file, text)
            mine, tokens = ours(arguments, file, text)
            difference = mine / theirs - 1
            passed &= abs(difference) <= BOUND
            print(f"| {file.name} | {tokens} | {theirs:.4f} | {mine:.4f} | {difference:+.2%} |", flush=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
