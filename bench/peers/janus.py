#!/usr/bin/env python3
"""Pictures an hour of Janus-Pro-1B's shape: `wels draw` in its number formats beside `transformers` in bf16, random
weights, guidance 5.

    python bench/peers/janus.py DIR --tokenizer runs/janus/tokenizer [--wels target/release/wels] [--codes 64]
        [--at-once 1 4] [--quant stored q8 q4] [--rounds 1] [--threads N]

DIR is made and filled with random weights in bf16 once (4.2 GB); any tokenizer with the tokens of pictures will do.
`transformers` draws the first CODES codes of AT-ONCE pictures, as its `generate` does, with a KV cache, two sequences a
picture and as many threads as cores, and decodes one; a picture of 576 codes is taken to last as much longer, which
leaves out that its later codes have more behind them. `wels draw` draws whole pictures. Neither counts the time in
which weights are loaded. In each round each of them runs once, in turn. Prints the medians of seconds a picture, of
seconds on cores a picture, and of the greatest memory of each process, and what they are to those of `transformers`.

On a machine that is shared, seconds say little: threads wait for each other, and OpenMP's suffer the most. There
`--threads 1` and the seconds on a core are what can be compared.

Needs torch 2.15.0 and transformers 5.23.0.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
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


def transformers(folder: Path, codes: int, pictures: int, threads: int) -> None:
    import numpy
    import torch
    from transformers import JanusForConditionalGeneration

    torch.set_num_threads(threads)
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.randint(0, 100_000, (2 * pictures, 16), generator=torch.Generator().manual_seed(2))
    def now() -> Any:
        """Seconds, and seconds on cores."""
        return numpy.array([time.monotonic(), time.process_time()])

    past: Any = None
    with torch.inference_mode():
        inputs = model.get_input_embeddings()(ids)
        for code in range(codes):
            out = model.model.language_model(inputs_embeds=inputs, past_key_values=past, use_cache=True)
            past = out.past_key_values
            scores = model.model.generation_head(out.last_hidden_state[:, -1])
            conditional, unconditional = scores.chunk(2)
            scores = unconditional + 5.0 * (conditional - unconditional)
            chosen = torch.multinomial(scores.float().softmax(-1), 1).repeat(2, 1)
            inputs = model.prepare_embeddings_for_image_generation(chosen)
            if code == 0:
                first = now()
        step = (now() - first) / (codes - 1)
        begin = now()
        model.decode_image_tokens(torch.zeros(1, PICTURE, dtype=torch.long))
        decoding = now() - begin
    total, on_cores = PICTURE * step / pictures + decoding
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": total, "on cores": on_cores, "step": step[0], "decoding": decoding[0], "gb": peak}))


def run(command: list[str]) -> tuple[str, float, list[tuple[float, float]]]:
    """What a process says, the greatest memory that it had, in GB, and how many seconds it had been on cores when."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    on_cores: list[tuple[float, float]] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            on_cores.append((time.monotonic(), ticks / os.sysconf("SC_CLK_TCK")))

    looking = threading.Thread(target=look)
    looking.start()
    assert process.stdout
    said = process.stdout.read()
    ended.set()
    looking.join()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    on_cores.append((time.monotonic(), usage.ru_utime + usage.ru_stime))
    return said, usage.ru_maxrss / 1e6, on_cores


def wels(binary: str, folder: Path, pictures: int, quant: str, threads: int) -> dict[str, float]:
    prompt, number = "a red circle left of a blue square", str(pictures)
    settings = ["--quant", quant, "-n", number, "--at-once", number, "--threads", str(threads)]
    begin = time.monotonic()
    command = [binary, "draw", str(folder), prompt, *settings, "-o", str(folder / "drawn.png"), "--json", "--force"]
    said, gb, on_cores = run(command)
    end, total = on_cores[-1]
    drawing = max(json.loads(line)["seconds"] for line in said.splitlines())
    loading = max(seconds for at, seconds in [(begin, 0.0), *on_cores] if at <= end - drawing)
    seconds, busy = drawing / pictures, (total - loading) / pictures
    return {"seconds": seconds, "on cores": busy, "loading": end - begin - drawing, "gb": gb}


def peer(folder: Path, pictures: int, codes: int, threads: int) -> dict[str, float]:
    settings = ["--codes", str(codes), "--peer", str(pictures), "--threads", str(threads)]
    said, _, _ = run([sys.executable, __file__, str(folder), *settings])
    return json.loads(said.splitlines()[-1])


def compare(args: argparse.Namespace, pictures: int) -> None:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ["transformers", *args.quant]}
    for _ in range(args.rounds):
        runs["transformers"].append(peer(args.folder, pictures, args.codes, args.threads))
        for quant in args.quant:
            runs[quant].append(wels(args.wels, args.folder, pictures, quant, args.threads))
    medians = {name: {key: statistics.median(it[key] for it in of) for key in of[0]} for name, of in runs.items()}
    theirs = medians["transformers"]
    for name, it in medians.items():
        times = {key: theirs[key] / it[key] for key in ("seconds", "on cores")}
        rest = ", ".join(f"{key} {it[key]:.3g} s" for key in ("step", "decoding", "loading") if key in it)
        print(
            f"{pictures} at once, {name}: {it['seconds']:.1f} s a picture ({3600 / it['seconds']:.0f} an hour), "
            f"{it['on cores']:.1f} s on cores, {it['gb']:.2f} GB; {rest}\n"
            f"  {times['seconds']:.2f} times as many, {times['on cores']:.2f} by the seconds on cores; "
            f"{it['gb'] / theirs['gb']:.2f} of the memory",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--wels", default="target/release/wels")
    parser.add_argument("--codes", type=int, default=64)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--quant", nargs="+", default=["stored", "q8", "q4"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return transformers(args.folder, args.codes, args.peer, args.threads)
    if not (args.folder / "config.json").exists():
        make(args.folder, args.tokenizer)
    for pictures in args.at_once:
        compare(args, pictures)


if __name__ == "__main__":
    main()
