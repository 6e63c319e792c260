"""Check that `transformers` with PEFT computes from an adapter written by Wels what Wels computes from it.

    .venv/bin/python check_adapter.py BASE ADAPTER --wels ../../target/release/wels [--ids 1,2,3]

BASE is a Hugging Face directory, ADAPTER a checkpoint of a stage with `[stage.lora]`. Both are loaded unchanged, by
AutoModelForCausalLM and PeftModel; no tensor of the adapter may be missing or left over. Then log-probabilities are
compared with `wels score BASE --adapter ADAPTER --ids … --json`, of the adapter as it is and of what
`merge_and_unload` and `wels convert --merge` make of it. Exits with 1 if any is more than 1e-4 away.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def wels(program: str, *args: str) -> list[float]:
    """The log-probabilities that Wels gives, without the first token's."""
    done = subprocess.run([program, "score", *args, "--json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["logprobs"][1:]


def theirs(model: torch.nn.Module, ids: list[int]) -> list[float]:
    """The same by PyTorch, in float32."""
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]


def main() -> None:
    """Compares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("--wels", required=True)
    parser.add_argument("--ids", default=",".join(str(i * 37 % 300) for i in range(1, 41)))
    args = parser.parse_args()
    ids = [int(token) for token in args.ids.split(",")]
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    plain = theirs(base, ids)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*adapter keys.*")
        model = PeftModel.from_pretrained(base, args.adapter)
    found = len([name for name in model.state_dict() if "lora_" in name])
    adapted = theirs(model, ids)
    merged = theirs(model.merge_and_unload(), ids)
    own = ["--ids", args.ids]
    far = lambda a, b: max(abs(x - y) for x, y in zip(a, b, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "merged")
        command = [args.wels, "convert", args.base, out, "--merge", args.adapter, "--dtype", "f32"]
        subprocess.run(command, check=True, capture_output=True)
        rows = [
            ("base", far(plain, wels(args.wels, args.base, *own))),
            ("adapter", far(adapted, wels(args.wels, args.base, "--adapter", args.adapter, *own))),
            ("merged", far(merged, wels(args.wels, out, *own))),
        ]
    print(f"{found} tensors; the adapter moves log-probabilities by up to {far(plain, adapted):.2e}")
    for name, difference in rows:
        print(f"{name}: log-probabilities differ by up to {difference:.1e}")
    if far(plain, adapted) == 0.0 or any(difference > TOLERANCE for _, difference in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
