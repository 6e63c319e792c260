"""Check that `transformers` computes from a model written by Wels what Wels computes from it.

    .venv/bin/python check_export.py RUN --wels ../../target/release/wels
    .venv/bin/python check_export.py HF_DIRECTORY --wels ... [--text TEXT] [--ids 1,2,3]

Loads the directory with AutoModelForCausalLM and AutoTokenizer, unchanged, and prints a table of

* missing, surplus or misshapen tensors (layers for multi-token prediction may be surplus: `transformers` leaves them
  out);
* token ids of the texts by AutoTokenizer against those of `wels score`;
* log-probabilities against `wels score --ids … --json`: at most 1e-4 apart;
* for a finished run whose recipe has prompts and `sample.temperature = 0`: greedy text against what `wels run RUN`
  prints.

Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = 1e-4
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i * i).collect();\n    println!(\"{x:?}\");\n}\n",
    "Größe, naïve, 東京, 🦀 — 3.14159 != 2.71828\t\t\n\n   end",
]


class Report:
    """Rows of the table, and whether all of them passed."""

    def __init__(self) -> None:
        self.passed = True
        print("| check | result | |\n|---|---|---|")

    def row(self, check: str, result: str, passed: bool) -> None:
        self.passed &= passed
        print(f"| {check} | {result} | {'ok' if passed else 'FAILED'} |")


def newest_checkpoint(run: Path) -> Path:
    """The Hugging Face directory of a run, or the directory itself if it is one."""
    if (run / "config.json").exists():
        return run
    done = sorted(path.parent for path in run.glob("pretrain/step-*/DONE"))
    if not done:
        sys.exit(f"{run} is neither a Hugging Face directory nor a run with a checkpoint")
    return done[-1]


def load(folder: Path, report: Report) -> PreTrainedModel:
    """The model in f32, and whether every tensor found its place."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    layers = model.config.num_hidden_layers
    mtp = [f"model.layers.{layers + k}." for k in range(getattr(model.config, "num_nextn_predict_layers", None) or 0)]
    info["unexpected_keys"] = [
        name for name in info["unexpected_keys"] if not any(name.startswith(prefix) for prefix in mtp)
    ]
    problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report.row("tensors", str(problems) if problems else f"{type(model).__name__}, {parameters:,} parameters", not problems)
    return model.eval()


def score(wels: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """What `wels score --json` says."""
    command = [wels, "score", folder, *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def check_logprobs(model: PreTrainedModel, wels: Path, folder: Path, name: str, ids: list[int], report: Report) -> None:
    """Compares the log-probability of every token but the first."""
    ours = score(wels, folder, "--ids", ",".join(map(str, ids)))["logprobs"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    theirs = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    difference = float((torch.tensor(ours[1:], dtype=torch.float64) - theirs).abs().max())
    report.row(f"log-probabilities of {name} ({len(ids)} tokens)", f"at most {difference:.1e} apart", difference <= TOLERANCE)


def check_greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wels: Path, run: Path, report: Report
) -> None:
    """Compares the samples of a finished run with greedy decoding."""
    recipe = tomllib.loads((run / "recipe.toml").read_text())["sample"]
    if not recipe["prompts"] or recipe["temperature"] != 0:
        report.row("greedy text", "the recipe has no prompts, or a temperature other than 0", False)
        return
    printed = subprocess.run([wels, "run", run], check=True, stdout=subprocess.PIPE, text=True).stdout
    samples = printed.split("\n---\n")
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for prompt, sample in zip(recipe["prompts"], samples, strict=False):
        ids = bos + tokenizer(prompt, add_special_tokens=False).input_ids
        made = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=recipe["tokens"],
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )[0, len(ids) :]
        text = prompt + tokenizer.decode(made, clean_up_tokenization_spaces=False)
        result = f"{len(made)} tokens equal" if text == sample else f"{sample!r} is not {text!r}"
        report.row(f"greedy text after {prompt!r}", result, text == sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run, or a Hugging Face directory")
    parser.add_argument("--wels", type=Path, required=True, help="the binary")
    parser.add_argument("--text", action="append", help="instead of the built-in texts; may be repeated")
    parser.add_argument("--ids", action="append", default=[], help="token ids to score besides; may be repeated")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    folder = newest_checkpoint(arguments.model)
    report = Report()
    model = load(folder, report)
    for i, ids in enumerate(arguments.ids):
        check_logprobs(model, arguments.wels, folder, f"ids {i + 1}", [int(id) for id in ids.split(",")], report)
    if (folder / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for i, text in enumerate(arguments.text or TEXTS):
            ids = score(arguments.wels, folder, "--text", text)["ids"]
            bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            theirs = bos + tokenizer(text, add_special_tokens=False).input_ids
            report.row(f"tokens of text {i + 1}", f"{len(ids)} ids" if ids == theirs else f"{ids} is not {theirs}", ids == theirs)
            check_logprobs(model, arguments.wels, folder, f"text {i + 1}", ids, report)
        if (arguments.model / "recipe.toml").exists():
            check_greedy(model, tokenizer, arguments.wels, arguments.model, report)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
