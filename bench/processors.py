"""The table of processors: docs/processors.md from the files that `wels bench all --json` wrote to docs/processors/.

    python bench/processors.py [--check]

A file is named after its processor and the instructions it was held to. `--check` writes nothing, and fails if the page
is not that of the files. Python's standard library alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """# Figures by processor

Of `wels bench all --json FILE` ([what it measures](machines.md#what-a-processor-does)); in brackets the share of the
limit that was measured on the same machine. The files are in [processors](processors/); one of yours is welcome there,
and `python bench/processors.py` writes this page. The products in bf16 of `epyc-zen4-2-avx2` are older than the
multiply-adds that now compute them without AVX512-BF16.

"""
PREFIXES = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")]


def shown(value: float, unit: str) -> str:
    """A rate with three digits."""
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if value >= size), (1, ""))
    scaled = value / size
    return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {prefix}{unit}"


def cell(report: dict[str, Any], name: str) -> str:
    figure = next((figure for figure in report["figures"] if figure["name"] == name), None)
    if figure is None:
        return "–"
    limit = figure["limit"]
    return shown(figure["value"], figure["unit"]) + (f" ({100 * limit['share']:.0f}%)" if limit else "")


def page(reports: dict[str, dict[str, Any]]) -> str:
    """Markdown: a column for each file, a row for each figure that any of them has."""
    columns = list(reports.values())
    lines = ["| | " + " | ".join(reports) + " |", "|---" * (len(columns) + 1) + "|"]

    def row(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | {' | '.join(cells)} |")

    row("processor", [f"{report['processor']}, {report['architecture']}, {report['system']}" for report in columns])
    row("threads, of cores", [f"{report['threads']}, {report['cores']}" for report in columns])
    row("instructions", [report["isa"] for report in columns])
    row("limit: multiply-adds in f32", [shown(report["fma_flops_per_second"], "FLOP/s") for report in columns])
    row("limit: products of bytes", [shown(report["dot_ops_per_second"], "OP/s") for report in columns])
    row("limit: reading", [shown(report["read_bytes_per_second"], "B/s") for report in columns])
    names = dict.fromkeys(figure["name"] for report in columns for figure in report["figures"])
    for name in names:
        row(name, [cell(report, name) for report in columns])
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    files = sorted((DOCS / "processors").glob("*.json"))
    text = page({file.stem: json.loads(file.read_text()) for file in files})
    path = DOCS / "processors.md"
    if not arguments.check:
        path.write_text(text)
    elif path.read_text() != text:
        sys.exit("docs/processors.md is not that of the files: python bench/processors.py writes it")


if __name__ == "__main__":
    main()
