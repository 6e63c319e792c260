"""What the scripts in bench/ share: building and running `wels`, variants of recipes, the machine's name, curves as SVG.

Python's standard library alone.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def build() -> Path:
    """The release binary, built from the tree."""
    command = ["cargo", "build", "--release", "--package", "wels-cli", "--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = (json.loads(line) for line in built.splitlines())
    return Path(next(message["executable"] for message in messages if message.get("executable")))


def recipe_variant(recipe: Path, changes: dict[str, Any]) -> str:
    """The recipe's text with `section.key` set to other values. (Its paths, if any, have to be absolute.)"""
    text = recipe.read_text()
    for key, value in changes.items():
        section, name = key.split(".")
        line = f"{name} = {json.dumps(value)}"
        tables = re.split(r"(?m)^(?=\[)", text)
        for i, table in enumerate(tables):
            if table.startswith(f"[{section}]"):
                changed, found = re.subn(rf"(?m)^{name} *=.*$", line, table)
                tables[i] = changed if found else table.rstrip() + f"\n{line}\n\n"
                break
        else:
            tables.append(f"\n[{section}]\n{line}\n")
        text = "".join(tables)
    assert all(tomllib.loads(text)[key.split(".")[0]][key.split(".")[1]] == value for key, value in changes.items())
    return text


@dataclass(frozen=True)
class Curve:
    """A pretraining run's validation losses."""

    label: str
    seed: int
    steps: list[int]
    seconds: list[float]
    """Of training alone, from the first step to the one validated after."""
    losses: list[float]
    """Nats a token."""

    @property
    def last(self) -> float:
        return self.losses[-1]


def train(wels: Path, recipe: Path, changes: dict[str, Any], runs: Path, label: str, seed: int) -> Curve:
    """Runs the variant, or what is left of it if it has begun, in `runs`."""
    name = f"{label}-seed{seed}"
    path = runs / f"{name}.toml"
    runs.mkdir(parents=True, exist_ok=True)
    path.write_text(recipe_variant(recipe, changes | {"run.name": name, "run.seed": seed}))
    subprocess.run([wels, "run", path, "--runs", runs], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (runs / name / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    curve = Curve(label, seed, [], [], [])
    seconds = 0.0
    for line in lines:
        seconds += line["seconds"]
        if line["validation"] is not None:
            curve.steps.append(line["step"])
            curve.seconds.append(seconds)
            curve.losses.append(line["validation"]["nll"])
    return curve


def bench_train(wels: Path, recipe: Path, changes: dict[str, Any], steps: int) -> dict[str, Any]:
    """What `wels bench train --json` says of the variant."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as variant:
        variant.write(recipe_variant(recipe, changes))
        variant.flush()
        command = [wels, "bench", "train", variant.name, "--steps", str(steps), "--json"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def machine() -> str:
    """Processor, cores, and the vector extensions that matter here."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        model = re.search(r"model name\s*: (.*)", info)
        flags = set((re.search(r"flags\s*: (.*)", info) or [""])[0].split())
    except FileNotFoundError:
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    known = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile"]
    extensions = ", ".join(flag for flag in known if flag in flags)
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores ({extensions})"


def median(values: list[float]) -> float:
    return statistics.median(values)


@dataclass
class Plot:
    """A line chart, as SVG."""

    title: str
    x_label: str
    y_label: str = "validation loss (nats a token)"
    y_range: tuple[float, float] | None = None
    """Left out, the range of the values but for the first sixth of each curve."""
    curves: list[tuple[str, str, list[float], list[float]]] = field(default_factory=list)
    """Label, colour, x, y."""

    WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 64, 52, 40, 16

    def svg(self) -> str:
        xs = [x for _, _, x, _ in self.curves for x in x]
        # The first validations are far above the rest; the axis shows what the comparison is about.
        ys = [y for _, _, _, y in self.curves for y in y[len(y) // 6 :]]
        x_max = max(xs)
        y_min, y_max = self.y_range or (min(ys) - 0.02, max(ys) + 0.02)

        def place(x: float, y: float) -> str:
            across = self.LEFT + x / x_max * (self.WIDTH - self.LEFT - self.RIGHT)
            down = self.TOP + (y_max - y) / (y_max - y_min) * (self.HEIGHT - self.TOP - self.BOTTOM)
            return f"{across:.1f},{down:.1f}"

        def text(x: float, y: float, anchor: str, words: str, more: str = "") -> str:
            return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{words}</text>'

        right, base = self.WIDTH - self.RIGHT, self.HEIGHT - self.BOTTOM
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.WIDTH} {self.HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{self.WIDTH}" height="{self.HEIGHT}" fill="white"/>',
            f'<clipPath id="plot"><rect x="{self.LEFT}" y="{self.TOP}" width="{right - self.LEFT}" '
            f'height="{base - self.TOP}"/></clipPath>',
            text(self.WIDTH / 2, 22, "middle", self.title, 'font-size="15"'),
            text((self.LEFT + right) / 2, self.HEIGHT - 14, "middle", self.x_label),
            text(14, (self.TOP + base) / 2, "middle", self.y_label, f'transform="rotate(-90 14 {(self.TOP + base) / 2})"'),
        ]
        for i in range(6):
            y = y_min + (y_max - y_min) * i / 5
            x = x_max * i / 5
            row = place(0, y).split(",")[1]
            parts.append(f'<line x1="{self.LEFT}" y1="{row}" x2="{right}" y2="{row}" stroke="#ddd"/>')
            parts.append(text(self.LEFT - 6, float(row) + 4, "end", f"{y:.2f}" if y_max < 10 else f"{y:.0f}"))
            parts.append(text(float(place(x, y_min).split(",")[0]), base + 18, "middle", f"{x:.0f}"))
        labels: dict[str, str] = {}
        for label, colour, x, y in self.curves:
            points = " ".join(place(x, y) for x, y in zip(x, y, strict=True))
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" clip-path="url(#plot)"/>'
            )
            labels[label] = colour
        for i, (label, colour) in enumerate(labels.items()):
            parts.append(text(right - 8, self.TOP + 18 + 17 * i, "end", label, f'fill="{colour}" font-weight="bold"'))
        return "\n".join([*parts, "</svg>", ""])
