#!/usr/bin/env python3
"""Pictures an hour of Janus-Pro-1B's shape: `wels draw` beside `transformers`, random weights in bf16, guidance 5.

    python bench/peers/janus.py DIR --tokenizer runs/janus/tokenizer [--wels target/release/wels] [--codes 64]
        [--at-once 1 4]

DIR is made and filled with random weights once (4.2 GB); any tokenizer with the tokens of pictures will do.
`transformers` draws the first CODES codes of AT-ONCE pictures,
as its `generate` does, with a KV cache and two sequences a picture, and decodes one; a picture of 576 codes is taken to
last as much longer. `wels draw` draws whole pictures. Both use all cores. Prints seconds a picture, pictures an hour,
and the greatest memory of each process.

Needs torch 2.15.0 and transformers 5.23.0.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "crates" / "model" / "src" / "janus" / "presets" / "janus-pro-1b.json"
PICTURE = 576


def make(folder: Path, tokenizer: Path) -> None:
    import torch
    from transformers import JanusConfig, JanusForConditionalGeneration

    config = JanusConfig(**json.loads(PRESET.read_text()))
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        block = torch.empty(1 << 16, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
        flat = parameter.data.view(-1)
        for begin in range(0, flat.numel(), block.numel()):
            part = flat[begin : begin + block.numel()]
            part.copy_(block[: part.numel()])
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)


def transformers(folder: Path, codes: int, pictures: int) -> None:
    import torch
    from transformers import JanusForConditionalGeneration

    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.randint(0, 100_000, (2 * pictures, 16), generator=torch.Generator().manual_seed(2))
    inputs = model.get_input_embeddings()(ids)
    past: Any = None
    with torch.inference_mode():
        begin = time.monotonic()
        for code in range(codes):
            out = model.model.language_model(inputs_embeds=inputs, past_key_values=past, use_cache=True)
            past = out.past_key_values
            scores = model.model.generation_head(out.last_hidden_state[:, -1])
            conditional, unconditional = scores.chunk(2)
            scores = unconditional + 5.0 * (conditional - unconditional)
            chosen = torch.multinomial(scores.float().softmax(-1), 1).repeat(2, 1)
            inputs = model.prepare_embeddings_for_image_generation(chosen)
            if code == 0:
                first = time.monotonic()
        step = (time.monotonic() - first) / (codes - 1)
        begin = time.monotonic()
        model.decode_image_tokens(torch.zeros(1, PICTURE, dtype=torch.long))
        decoding = time.monotonic() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": PICTURE * step / pictures + decoding, "decoding": decoding, "gb": peak}))


def wels(binary: str, folder: Path, pictures: int) -> dict[str, float]:
    prompt = "a red circle left of a blue square"
    command = [binary, "draw", str(folder), prompt, "-n", str(pictures), "--at-once", str(pictures), "--force"]
    begin = time.monotonic()
    subprocess.run([*command, "-o", str(folder / "drawn.png")], check=True, stdout=subprocess.DEVNULL)
    seconds = (time.monotonic() - begin) / pictures
    return {"seconds": seconds, "gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--wels", default="target/release/wels")
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return transformers(args.folder, args.codes, args.peer)
    if not (args.folder / "config.json").exists():
        make(args.folder, args.tokenizer)
    for pictures in args.at_once:
        ours = wels(args.wels, args.folder, pictures)
        command = [sys.executable, __file__, str(args.folder), "--codes", str(args.codes), "--peer", str(pictures)]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for name, it in [("wels", ours), ("transformers", theirs)]:
            rate = 3600 / it["seconds"]
            print(f"{pictures} at once, {name}: {it['seconds']:.1f} s a picture, {rate:.1f} an hour, {it['gb']:.1f} GB")
        print(f"  {theirs['seconds'] / ours['seconds']:.2f} times as many, {ours['gb'] / theirs['gb']:.2f} of the memory")


if __name__ == "__main__":
    main()
