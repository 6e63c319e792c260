"""Compare greedy answers in float32 with those of `transformers`, token by token.

    pip install -r requirements.txt
    ../../target/release/wels convert smollm2-f16.gguf DIRECTORY
    python greedy.py DIRECTORY [--wels ../../target/release/wels] [--prompts 50] [--tokens 64]

Serves the directory with a cache of float32 and asks for completions of the same ids at temperature 0. Where two
answers part, the margin is printed by which `transformers` preferred its token to ours: a tie is one within the
rounding of float32, which sums in another order move by as much.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TIE = 1e-3
"""Logits of a size of some 20 differ by up to about 1e-4 between two orders of summation."""
SUBJECTS = [
    "the sea", "prime numbers", "bread", "the French Revolution", "a lost key", "photosynthesis", "chess", "the moon",
    "sorting a list", "rivers",
]
FORMS = [
    "Once upon a time, {} was",
    "Q: What should everybody know about {}?\nA:",
    "Here is a list of five facts about {}:\n1.",
    "<|im_start|>user\nWrite two sentences about {}.<|im_end|>\n<|im_start|>assistant\n",
    "# A Python program about {}\ndef main():\n",
]


class Server:
    """`wels serve` on a port of its own, until the block is left."""

    def __init__(self, wels: Path, model: Path) -> None:
        self.folder = tempfile.TemporaryDirectory()
        command = [wels, "serve", model, "--listen", "127.0.0.1:0", "--cache", "f32", "--name", "it"]
        command += ["--db", Path(self.folder.name) / "ledger.db"]
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Server:
        lines = [self.process.stdout.readline() for _ in range(3)]
        self.base = re.search(r"http\S+", lines[0])[0]
        self.key = re.search(r"key\s+(\S+)", lines[1])[1]
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def complete(self, ids: list[int], tokens: int) -> str:
        body = {"model": "it", "prompt": ids, "max_tokens": tokens, "temperature": 0}
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.base}/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["choices"][0]["text"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--wels", type=Path, default=ROOT / "target/release/wels")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.directory)
    model = AutoModelForCausalLM.from_pretrained(arguments.directory, dtype=torch.float32).eval()
    stops = model.config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    prompts = [form.format(subject) for form in FORMS for subject in SUBJECTS][: arguments.prompts]
    equal, ties, wrong = 0, 0, 0

    def text_of(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    with Server(arguments.wels, arguments.directory) as server:
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
            with torch.no_grad():
                out = model.generate(
                    ids, max_new_tokens=arguments.tokens, do_sample=False, output_logits=True,
                    return_dict_in_generate=True,
                )
            theirs = out.sequences[0, ids.shape[1] :].tolist()
            if theirs[-1] in stops:
                theirs.pop()
            ours = server.complete(ids[0].tolist(), arguments.tokens)
            if ours == text_of(theirs):
                equal += 1
                continue
            known = (text_of(theirs[: i + 1]).rstrip("\ufffd") for i in range(len(theirs)))
            at = next((i for i, text in enumerate(known) if not ours.startswith(text)), len(theirs))
            logits = out.logits[at][0]
            order = logits.argsort(descending=True)[:20].tolist()
            fits = [token for token in order[1:] if ours.startswith(text_of([*theirs[:at], token]))]
            margin = float(logits[order[0]] - logits[fits[0]]) if fits else float("inf")
            ties, wrong = ties + (margin <= TIE), wrong + (margin > TIE)
            print(f"{prompt[:40]!r}: token {at}, {text_of([order[0]])!r} preferred to ours by {margin:.2e}", flush=True)
    print(f"{len(prompts)} prompts, {arguments.tokens} tokens: {equal} equal, {ties} ties, {wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
