#!/usr/bin/env python3
"""GRPO on pictures by several seeds, from the same model: what it adds to captions that were never seen.

    python bench/janus/grpo.py RUN [--seeds 1 2 3] [--wels target/release/wels] [--out runs]

RUN is a finished run of recipes/janus.toml. For each seed a run of the recipe's last two stages is made, begun from
RUN's stage `tuned`: other captions, other pictures, other fresh captions to be graded on. Prints a line a seed: shares
of right pictures before and after, of seen and of unseen captions, and the p of the paired test on the unseen ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

HEAD = """[run]
name = "{name}"
seed = {seed}

[tokenizer]
path = "{run}/tokenizer"

[data]
sources = []

[model]
config = "{model}/config.json"

"""


def stages(run: Path, model: Path) -> str:
    """The recipe's stages `drawn` and `scores`, begun from a directory."""
    text = (run / "recipe.toml").read_text()
    parts = text.split("[[stage]]")
    wanted = [part for part in parts if 'name = "drawn"' in part or 'name = "scores"' in part]
    assert len(wanted) == 2, f"{run} is no run of recipes/janus.toml"
    return "".join("[[stage]]" + part.replace('"tuned"', f'"{model}"') for part in wanted)


def mean(shares: dict[str, dict[str, int]]) -> float:
    return 100 * sum(share["right"] / share["of"] for share in shares.values()) / len(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--wels", default="target/release/wels")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args()
    run = args.run.resolve()
    model = sorted((run / "tuned").glob("step-*"))[-1]
    args.out.mkdir(exist_ok=True)
    print("seed   seen: before  after   unseen: before  after       p")
    for seed in args.seeds:
        name = f"janus-grpo-{seed}"
        recipe = args.out / f"{name}.toml"
        recipe.write_text(HEAD.format(name=name, seed=seed, run=run, model=model) + stages(run, model))
        subprocess.run([args.wels, "run", str(recipe)], check=True, capture_output=True)
        before, after = json.loads((Path("runs") / name / "scores" / "scores.json").read_text())
        seen, unseen = [(mean(before[key]), mean(after[key])) for key in ["seen", "unseen"]]
        print(
            f"{seed:4}   {seen[0]:12.1f} {seen[1]:6.1f}   {unseen[0]:14.1f} {unseen[1]:6.1f}   {after['p']:.2g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
