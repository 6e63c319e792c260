"""Verdicts of reasoning-gym's scorers on right, wrong and malformed answers, for the graders of `crates/tasks` to equal.

    pip install reasoning-gym==0.1.25
    python scripts/oracle/make_graders.py

Writes crates/tasks/tests/oracle/graders.tsv: kind, reference, answer, whether the scorer gives its full score. The
answers are made here, from a fixed seed; the questions' texts are not written.
"""

from __future__ import annotations

import random
from importlib.metadata import version
from pathlib import Path

from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset
from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import GSMSymbolicDataset, GSMSymbolicDatasetConfig
from reasoning_gym.arithmetic.products import ProductsConfig, ProductsDataset
from reasoning_gym.games.countdown import CountdownConfig, CountdownDataset

VERSION = "0.1.25"
OUT = Path(__file__).parents[2] / "crates" / "tasks" / "tests" / "oracle" / "graders.tsv"
MALFORMED = ["", " ", "?", "x", "no idea", "1 +", "(1", "1)", "++", "--", "1,,2", "1 2", "1/0", "NaN", "inf", "None", "0x10",
             "1e", "...", "=", "$", "#### ", "\\boxed{}", "one", "1..2", "1.2.3", "-", "()", "[]", "{}"]


def expressions(rng: random.Random, numbers: list[int]) -> list[str]:
    """Random ways to combine numbers, most of them wrong."""
    found = []
    for _ in range(6):
        texts = [str(number) for number in rng.sample(numbers, len(numbers))]
        while len(texts) > 1:
            a, b = texts.pop(), texts.pop()
            pair = f"{a} {rng.choice('+-*/')} {b}"
            texts.append(f"({pair})" if rng.random() < 0.6 else pair)
        found.append(texts[0])
    return found


def countdown(rng: random.Random) -> list[tuple[str, str, str, bool]]:
    rows = []
    data = CountdownDataset(CountdownConfig(min_numbers=3, max_numbers=4, seed=1, size=100))
    for entry in data:
        numbers, target = entry["metadata"]["numbers"], entry["metadata"]["target"]
        right = entry["answer"]
        answers = [right, f"({right})", right.replace("*", " * "), f"{right} + 0", f"{right} + 1 - 1", str(target),
                   f"-(-({right}))", right.replace("+", "-"), *expressions(rng, numbers), rng.choice(MALFORMED)]
        reference = ",".join(map(str, numbers)) + f"={target}"
        rows += [("countdown", reference, answer, data.score_answer(answer, entry) == 1.0) for answer in answers]
    return rows


def numeric(kind: str, data, rng: random.Random) -> list[tuple[str, str, str, bool]]:
    rows = []
    for entry in data:
        right = entry["answer"]
        value = float(right)
        whole = int(value) if value == int(value) else value
        answers = [right, f"{right}.0" if "." not in right else f"{right}0", f"+{right}" if value > 0 else f"{right}.00",
                   str(whole + 1), str(whole - 1), str(whole * 10), str(-whole) if whole else "7", f"{right}.5",
                   f"{right}1", rng.choice(MALFORMED)]
        if "." not in right and abs(value) >= 1000:
            answers.append(f"{int(right):,}")
        rows += [(kind, right, answer, data.score_answer(answer, entry) == 1.0) for answer in answers]
    return rows


def main() -> None:
    assert version("reasoning-gym") == VERSION, version("reasoning-gym")
    rng = random.Random(20261122)
    rows = countdown(rng)
    rows += numeric("arithmetic", ChainSumDataset(ChainSumConfig(seed=2, size=60)), rng)
    rows += numeric("arithmetic", ProductsDataset(ProductsConfig(seed=3, size=40)), rng)
    rows += numeric("gsm", GSMSymbolicDataset(GSMSymbolicDatasetConfig(seed=4, size=60)), rng)
    lines = [f"# reasoning-gym {VERSION}: kind, reference, answer, full score; divided by tabs"]
    lines += ["\t".join([kind, reference, answer, str(int(right))]) for kind, reference, answer, right in rows]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")
    print(len(rows), "answers,", sum(right for *_, right in rows), "right")


if __name__ == "__main__":
    main()
