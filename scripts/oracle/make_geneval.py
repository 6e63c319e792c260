"""Random pictures' detections with the verdicts of GenEval's own rules, for `crates/scenes`.

    python make_geneval.py EVALUATE_IMAGES.PY

takes GenEval's published `evaluation/evaluate_images.py` (github.com/djghosh13/geneval, at 16f1681), of which the
functions that judge are run and nothing else, and writes `crates/scenes/tests/data/geneval.jsonl`: a line for each case
with prompt, detections and verdict. What the script does with a detector's boxes before that (thresholds, order, at
most 16 of a class) is repeated here, with its defaults. Needs numpy alone.
"""

from __future__ import annotations

import ast
import json
import random
import sys
from pathlib import Path

import numpy as np

CASES = 300
CLASSES = ["cup", "cow", "dog"]
TAGS = ["counting", "colors", "position", "color_attr", "two_object"]
OUT = Path(__file__).resolve().parents[2] / "crates/scenes/tests/data/geneval.jsonl"


def published(path: str):
    """`evaluate` of the file, with colours that the detections name."""
    wanted = {"relative_position", "evaluate"}
    tree = ast.parse(Path(path).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    assert len(functions) == len(wanted), "the file has not the functions that are looked for"
    names = {
        "np": np,
        "POSITION_THRESHOLD": 0.1,
        "COLORS": ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"],
        "color_classification": lambda image, found, classname: [thing[1] for thing in found],
    }
    exec(compile(ast.Module(functions, []), path, "exec"), names)
    return names["evaluate"]


def kept(objects: list[dict], tag: str) -> dict[str, list]:
    """A class's surest detections, as (box, colour)."""
    least = 0.9 if tag == "counting" else 0.3
    found: dict[str, list] = {}
    for thing in sorted(objects, key=lambda thing: -thing["score"]):
        group = found.setdefault(thing["class"], [])
        if thing["score"] > least and len(group) < 16:
            group.append((np.array(thing["box"], dtype=float), thing.get("color")))
    return {name: group for name, group in found.items() if group}


def case(chance: random.Random) -> tuple[dict, list[dict]]:
    tag, include = chance.choice(TAGS), []
    for number in range(chance.randint(1, 3)):
        clause = {"class": chance.choice(CLASSES), "count": chance.choice([1, 1, 1, 2])}
        if chance.random() < 0.3:
            clause["color"] = chance.choice(["red", "orange"])
        if number and chance.random() < 0.7:
            where = chance.choice(["left of", "right of", "above", "below"])
            clause["position"] = [where, chance.randrange(number)]
        include.append(clause)
    prompt = {"tag": tag, "include": include, "prompt": "x"}
    if chance.random() < 0.3:
        prompt["exclude"] = [{"class": chance.choice(CLASSES), "count": chance.choice([2, 3])}]
    objects = []
    for _ in range(chance.randint(1, 6)):
        x, y = chance.randint(0, 60), chance.randint(0, 60)
        score = round(chance.uniform(0.8 if tag == "counting" else 0.2, 1.0), 4)
        thing = {"class": chance.choice(CLASSES), "box": [x, y, x + chance.randint(5, 60), y + chance.randint(5, 60)]}
        objects.append({**thing, "score": score, "color": chance.choice(["red", "orange"])})
    return prompt, objects


def main() -> None:
    evaluate, chance = published(sys.argv[1]), random.Random(1)
    rows = {True: [], False: []}
    # As many that pass as that do not: of random ones few pass.
    while min(len(rows[True]), len(rows[False])) < CASES // 2:
        prompt, objects = case(chance)
        correct, _ = evaluate(None, kept(objects, prompt["tag"]), prompt)
        if len(rows[bool(correct)]) < CASES // 2:
            rows[bool(correct)].append({"prompt": prompt, "detected": objects, "correct": bool(correct)})
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows[True] + rows[False]))


main()
