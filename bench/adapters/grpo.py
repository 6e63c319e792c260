"""GRPO of all weights, of an adapter, and of an adapter beside blocks: peak memory, and right answers afterwards.

    python bench/adapters/grpo.py MODEL.gguf [--steps 200] [--items 400] [--only full lora qlora] [--runs runs/adapters]

The recipe is recipes/smollm2-grpo.toml with SmolLM2-135M-Instruct's GGUF file: short sums, the same seed, prompts and
limits on each side. `lora` holds the base in f32, `qlora` as the file has it; both learn rank 16 beside all linear maps
at ten times the learning rate. With `--steps 3 --items 0` it is a matter of minutes and of memory alone. Memory is the
greatest resident set of the process that trains (`ru_maxrss`), its program and the mapped file included. Python's
standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402

LORA = """
[stage.lora]
rank = 16
alpha = 32
base = "{base}"
"""

RECIPE = """
[run]
name = "{name}"
seed = 1

[tokenizer]
path = "{model}"

[model]
preset = "smollm2-135m"

[[stage]]
name = "reinforced"
kind = "rl"
from = "{model}"
task = "short:addition"
steps = {steps}
prompts = 6
samples = 8
max_tokens = 16
learning_rate = {rate}
warmup_steps = 5
clip_high = 0.28
micro_rows = 1024
running = 48
{lora}"""

SCORES = """
[[stage]]
name = "scores"
kind = "score"
models = ["{model}", "reinforced"]
task = "short:addition"
items = {items}
max_tokens = 16
running = 64
"""

SIDES = {"full": (2e-5, ""), "lora": (2e-4, LORA.format(base="f32")), "qlora": (2e-4, LORA.format(base="stored"))}


def run(binary: Path, recipe: Path, runs: Path) -> float:
    """Runs a recipe to its end; the greatest resident set, MB."""
    process = subprocess.Popen([binary, "run", recipe, "--runs", runs], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{recipe} ended with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024 / 1e6


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--runs", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.only:
        rate, lora = SIDES[name]
        model = arguments.model.resolve()
        text = RECIPE.format(name=name, model=model, steps=arguments.steps, rate=rate, lora=lora)
        if arguments.items:
            text += SCORES.format(model=model, items=arguments.items)
        recipe = arguments.runs / f"{name}.toml"
        recipe.write_text(text)
        peak = run(binary, recipe, arguments.runs)
        metrics = lines(arguments.runs / name / "reinforced" / "metrics.jsonl")
        differences = max(line["logprob_difference_max"] for line in metrics)
        last = metrics[-20:]
        accuracy = sum(line["accuracy"] for line in last) / len(last)
        seconds = sum(line["seconds"] for line in metrics) / len(metrics)
        rows.append((name, peak, accuracy, seconds, differences))
    print(wels.machine())
    print(f"\n{arguments.steps} steps of GRPO; right of the last {min(20, arguments.steps)} steps' answers\n")
    print("| learnt | peak memory | of full | right in training | seconds a step | log-probability difference |")
    print("|---|---|---|---|---|---|")
    whole = next((peak for name, peak, *_ in rows if name == "full"), None)
    for name, peak, accuracy, seconds, difference in rows:
        share = f"{100 * peak / whole:.0f}%" if whole else "-"
        print(f"| {name} | {peak:.0f} MB | {share} | {100 * accuracy:.1f}% | {seconds:.2f} | {difference} |")
    if arguments.items:
        print("\nRight held-out sums, before and after, stand in each run's report and in scores/.")


if __name__ == "__main__":
    main()
