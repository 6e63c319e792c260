"""MMLU by the likelihood of letters, beside `transformers`: the same choices, and in what time.

    python bench/peers/eval.py MODEL.gguf --data DIR agree [--items 1000]
    python bench/peers/eval.py MODEL.gguf --data DIR time [--items 1000] [--timed 48]

Runs in the pinned environment of bench/peers/requirements.txt. Prompts are built here from the CSV
files, five examples of the question's part of the file before each question, and held against the hashes in Wels'
receipts. Nothing is padded that need not be: batches are of like lengths, padded on the left, and only the last
position's logits are computed. Three ways of asking `transformers` are timed, in float32 and in bfloat16:

* `single`: every prompt whole, one at a time, without padding and without a mask;
* `batched`: every prompt whole, `--batch` at a time;
* `prefix`: the examples of a part once, and the questions of that part in batches behind a copy of that cache, which is
  what Wels' engine does by itself.

`agree` compares the choices with those of `transformers` in float32, and where they differ prints by how much the
two likeliest letters differ on either side. `time` runs Wels on all items, load and files included, and `transformers`
on some, drawn evenly, without load and tokenisation; both as seconds an item. Of `prefix` whole parts are timed: so
examples are shared by as many questions as in the whole.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers.pre_tokenizers import Digits, Sequence  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache  # noqa: E402

import wels  # noqa: E402

SHOTS = 5
TIE = 0.01
"""Difference of log-probabilities, in nats, below which two letters count as equally likely."""


@dataclass
class Item:
    part: int
    header: str
    question: str
    receipt: dict
    header_ids: list[int]
    ids: list[int]


def tokenizer_of(file: Path):
    """The file's tokenizer. What `transformers` makes of a GGUF file does not set digits apart before it splits the
    rest, as SmolLM2's own tokenizer and llama.cpp do: two line ends before a digit are one token, not two."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    rest = tokenizer.backend_tokenizer.pre_tokenizer
    with file.open("rb") as header:
        if b"smollm" in header.read(1 << 20):
            tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), rest])
    return tokenizer


def parts(file: Path) -> list[list[list[str]]]:
    """The tables of a file, which begin again with their header."""
    tables: list[list[list[str]]] = []
    for row in csv.reader(file.open(newline="")):
        if row and row[0] == "question":
            tables.append([])
        elif row:
            tables[-1].append(row)
    return tables


def shown(row: list[str]) -> str:
    choices = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True))
    return f"{row[0].strip()}{choices}\nAnswer:"


def items(data: Path, receipts: list[dict], tokenizer) -> list[Item]:
    """The items that Wels was asked, with prompts made here."""
    tests, devs = parts(data / "mmlu_test.csv"), parts(data / "mmlu_dev.csv")
    rows = [(part, row) for part, table in enumerate(tests) for row in table]
    headers = []
    for table in devs:
        examples = "".join(f"{shown(row)} {'ABCD'[int(row[5])]}\n\n" for row in table[:SHOTS])
        headers.append(f"The following are multiple choice questions (with answers).\n\n{examples}")
    header_ids = [tokenizer(header, add_special_tokens=False).input_ids for header in headers]
    found = []
    for receipt in receipts:
        part, row = rows[int(receipt["item"])]
        prompt = headers[part] + shown(row)
        assert hashlib.sha256(prompt.encode()).hexdigest() == receipt["prompt_sha256"], receipt["item"]
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        if len(ids) != receipt["prompt_tokens"]:
            print(f"item {receipt['item']}: {receipt['prompt_tokens']} tokens in Wels, {len(ids)} in transformers")
        found.append(Item(part, headers[part], shown(row), receipt, header_ids[part], ids))
    return found


def batches(lengths: list[int], size: int) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[first : first + size] for first in range(0, len(order), size)]


def padded(sequences: list[list[int]], past: int) -> dict[str, torch.Tensor]:
    """Padded on the left; `past` tokens before them are in the cache."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), past + longest, dtype=torch.long)
    mask[:, :past] = 1
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        mask[row, past + longest - len(sequence) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


class Peer:
    def __init__(self, file: Path, dtype: torch.dtype, tokenizer) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype).eval()
        self.letters = [tokenizer(f" {letter}", add_special_tokens=False).input_ids for letter in "ABCD"]
        assert all(len(ids) == 1 for ids in self.letters)
        self.letters = [ids[0] for ids in self.letters]

    def scores(self, logits: torch.Tensor) -> list[list[float]]:
        return logits[:, -1].float().log_softmax(-1)[:, self.letters].tolist()

    @torch.inference_mode()
    def batched(self, asked: list[Item], size: int) -> list[list[float]]:
        """Log-probabilities of the letters, whole prompts in batches of like lengths."""
        found: list = [None] * len(asked)
        for batch in batches([len(item.ids) for item in asked], size):
            whole = padded([asked[at].ids for at in batch], 0)
            if whole["attention_mask"].all():
                del whole["attention_mask"]
            output = self.model(**whole, logits_to_keep=1, use_cache=False)
            for at, scores in zip(batch, self.scores(output.logits), strict=True):
                found[at] = scores
        return found

    def single(self, asked: list[Item], size: int) -> list[list[float]]:
        """The same, one at a time."""
        return self.batched(asked, 1)

    @torch.inference_mode()
    def prefix(self, asked: list[Item], size: int) -> list[list[float]]:
        """The same, the examples of each part once."""
        found: list = [None] * len(asked)
        of_part = defaultdict(list)
        for at, item in enumerate(asked):
            of_part[item.part].append(at)
        for places in of_part.values():
            header = asked[places[0]].header_ids
            # Where the question's first letters would be merged with the header's last, less is shared.
            while any(asked[at].ids[: len(header)] != header for at in places):
                header = header[:-1]
            past = len(header)
            cached = self.model(torch.tensor([header]), use_cache=True, logits_to_keep=1).past_key_values
            layers = [(layer.keys, layer.values) for layer in cached.layers]
            for batch in batches([len(asked[at].ids) for at in places], size):
                cache = DynamicCache()
                for number, (keys, values) in enumerate(layers):
                    shape = (len(batch), -1, -1, -1)
                    cache.update(keys.expand(shape), values.expand(shape), number)
                rest = [asked[places[at]].ids[past:] for at in batch]
                output = self.model(**padded(rest, past), past_key_values=cache, use_cache=True, logits_to_keep=1)
                for at, scores in zip(batch, self.scores(output.logits), strict=True):
                    found[places[at]] = scores
        return found


def likeliest(scores: list[float]) -> str:
    return "ABCD"[scores.index(max(scores))]


def margin(scores: list[float]) -> float:
    first, second = sorted(scores, reverse=True)[:2]
    return first - second


def agree(peer: Peer, asked: list[Item], size: int) -> bool:
    theirs = peer.prefix(asked, size)
    apart = max(abs(a - b) for item, b4 in zip(asked, theirs) for a, b in zip(item.receipt["choices"], b4))
    different = [(item, scores) for item, scores in zip(asked, theirs) if likeliest(scores) != item.receipt["answer"]]
    for item, scores in different:
        ours = item.receipt["choices"]
        print(f"item {item.receipt['item']}: Wels {likeliest(ours)} by {margin(ours):.6f}, transformers "
              f"{likeliest(scores)} by {margin(scores):.6f} nats")
    ties = sum(margin(scores) < TIE and margin(item.receipt["choices"]) < TIE for item, scores in different)
    same = len(asked) - len(different)
    print(f"{same} of {len(asked)} choices equal ({same / len(asked):.2%}), {ties} of the rest ties within {TIE} nats; "
          f"log-probabilities at most {apart:.1e} apart")
    return same >= 0.995 * len(asked) and ties == len(different)


def run_wels(arguments: argparse.Namespace, folder: str) -> tuple[list[dict], float, str]:
    command = [arguments.wels or wels.build(), "--threads", arguments.threads, "eval", arguments.model]
    command += ["--bench", "mmlu", "--data", arguments.data, "--items", arguments.items, "--shots", SHOTS]
    command += ["--cache", "f32", "--out", f"{folder}/wels"]
    begin = time.perf_counter()
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    lines = (Path(folder) / "wels/mmlu.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], seconds, next(l for l in done.stderr.splitlines() if " work " in l)


def timed(arguments: argparse.Namespace, tokenizer, asked: list[Item], wels_seconds: float) -> None:
    some = asked[:: max(1, len(asked) // arguments.timed)]
    order = sorted({item.part for item in asked}, key=lambda part: hashlib.sha256(str(part).encode()).digest())
    whole = [item for part in order[: arguments.parts] for item in asked if item.part == part]
    print("\n| | items | s an item | tokens/s of whole prompts | Wels is faster by |\n|---|---|---|---|---|", flush=True)
    mine = wels_seconds / len(asked)

    def row(name: str, of: list[Item], seconds: float) -> None:
        rate = sum(len(item.ids) for item in of) / seconds
        each = seconds / len(of)
        print(f"| {name} | {len(of)} | {each:.3f} | {rate:.0f} | {each / mine:.1f}× |", flush=True)

    row("Wels", asked, wels_seconds)
    for dtype in [torch.float32, torch.bfloat16]:
        peer = Peer(arguments.model, dtype, tokenizer)
        peer.batched(some[:2], 2)
        for way in arguments.ways:
            of = whole if way == "prefix" else some
            begin = time.perf_counter()
            getattr(peer, way)(of, arguments.batch)
            row(f"transformers, {str(dtype).removeprefix('torch.')}, {way}", of, time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("what", choices=["agree", "time"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=48, help="items for transformers, whole prompts")
    parser.add_argument("--parts", type=int, default=5, help="parts for transformers, examples once")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ways", nargs="+", default=["single", "batched", "prefix"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    parser.add_argument("--receipts", type=Path, help="receipts that are there, instead of running Wels")
    parser.add_argument("--wels-seconds", type=float, help="what making them took")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{wels.machine()}; torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    tokenizer = tokenizer_of(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.receipts:
            receipts = [json.loads(line) for line in arguments.receipts.read_text().splitlines()]
            seconds = arguments.wels_seconds
        else:
            receipts, seconds, work = run_wels(arguments, folder)
            print(work.strip())
    asked = items(arguments.data, receipts, tokenizer)
    if arguments.what == "agree":
        sys.exit(not agree(Peer(arguments.model, torch.float32, tokenizer), asked, arguments.batch))
    assert seconds, "--receipts need --wels-seconds"
    timed(arguments, tokenizer, asked, seconds)


if __name__ == "__main__":
    main()
