"""The figures that scripts/gpu/check.sh measures: one JSON object a line, and the table that they make.

    table.py keep SECTION NAME CODE SECONDS FOLDER    what a command left in NAME.json and NAME.log, and how it ended
    table.py forget SECTION FOLDER                    before a section runs again
    table.py write FOLDER                             gpu.md
    table.py passed FOLDER                            exit code 1 if a suite failed or bits differ

Python's standard library alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def objects(text: str) -> list[Figures]:
    """The lines that are JSON objects."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def keep(folder: Path, section: str, name: str, code: int, seconds: int) -> None:
    out = (folder / f"{name}.json").read_text(errors="replace")
    log = (folder / f"{name}.log").read_text(errors="replace")
    said = [line for line in log.splitlines() if line.strip()]
    tests = [line for line in out.splitlines() if line.startswith("test result")]
    failed = [line for line in out.splitlines() if line.startswith("test ") and line.endswith("FAILED")]
    common = {"section": section, "name": name, "code": code, "took_s": seconds}
    if code == 124 or code == 137:
        common["why"] = "it took too long"
    elif code:
        common["why"] = said[-1][:200] if said else "it said nothing"
    if tests:
        common["tests"] = ";".join(tests[-1].split(";")[:2]).removeprefix("test result: ")
        common["failed"] = [line.split()[1] for line in failed]
    lines = [common | {"figures": figures} for figures in objects(out)] or [common]
    with open(folder / "figures.jsonl", "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def all_of(folder: Path) -> list[Figures]:
    path = folder / "figures.jsonl"
    return objects(path.read_text()) if path.exists() else []


def forget(folder: Path, section: str) -> None:
    left = [line for line in all_of(folder) if line["section"] != section]
    (folder / "figures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in left))


def of(lines: list[Figures], section: str) -> dict[str, Figures]:
    return {line["name"]: line for line in lines if line["section"] == section}


def not_measured(line: Figures) -> str:
    return f"not measured: {line.get('why', 'no figure')}".replace("|", "/")


def short(value: float | None, unit: str = "") -> str:
    if value is None:
        return "–"
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{letter}{unit}"
    return f"{value:.1f}{unit}"


def conformance(lines: list[Figures]) -> list[str]:
    rows = ["| suite on the card | result | time | tests |", "|---|---|---|---|"]
    for name, line in of(lines, "conformance").items():
        ended = "passes" if line["code"] == 0 else f"**fails** ({line['code']}) " + ", ".join(line.get("failed", []))
        rows.append(f"| {name} | {ended} | {line['took_s']} s | {line.get('tests', line.get('why', ''))} |")
    return rows


def train(lines: list[Figures]) -> list[str]:
    rows = ["| training, bf16, 4k context | a step | tokens/s | MFU | memory | Wels is |", "|---|---|---|---|---|---|"]
    all_figures = of(lines, "train")
    for name, line in all_figures.items():
        figures = line.get("figures")
        if not figures:
            rows.append(f"| {name} | {not_measured(line)} | | | | |")
            continue
        wels = all_figures.get(f"{name.split('.')[0]}.wels", {}).get("figures", {})
        rate = figures["tokens_per_second"]
        peak, flops = wels.get("peak_flops_per_second"), wels.get("flops_per_token")
        mfu = f"{100 * rate * flops / peak:.1f}%" if peak and flops else "–"
        ratio = f"{wels['tokens_per_second'] / rate:.2f}×" if wels and figures is not wels else ""
        memory = short(figures.get("peak_device_bytes"), "B")
        rows.append(
            f"| {name} | {1e3 * figures['seconds_per_step']:.0f} ms | {rate:,.0f} | {mfu} | {memory} | {ratio} |"
        )
    return rows


def losses(lines: list[Figures]) -> dict[str, list[float | None]]:
    """Of each model, the last losses of its runs, which have to be one."""
    found: dict[str, list[float | None]] = {}
    for name, line in of(lines, "bits").items():
        found.setdefault(name.split(".")[0], []).append(line.get("figures", {}).get("last_loss"))
    return found


def bits(lines: list[Figures]) -> list[str]:
    rows = ["| loss after two runs and one in other micro-batches | |", "|---|---|"]
    for model, values in losses(lines).items():
        same = "equal" if len(set(values)) == 1 and values[0] is not None else "**differ**"
        rows.append(f"| {model}, bf16 | {same}: {', '.join(map(str, values))} |")
    return rows


def stages(lines: list[Figures]) -> list[str]:
    rows = ["| all kinds of stages, bf16, killed and gone on with | whole | kills | files | verified |", "|---|---|---|---|---|"]
    for name, line in of(lines, "stages").items():
        it = line.get("figures")
        if not it:
            rows.append(f"| {name} | {not_measured(line)} | | | |")
            continue
        equal = "equal" if it["equal"] else "**differ**"
        rows.append(f"| {name} | {it['seconds']} s | {it['kills']} | {it['files']}, {equal} | {it['verified']} |")
    return rows


def kernels(lines: list[Figures]) -> list[str]:
    rows = ["| kernel | TFLOP/s | PyTorch | ratio | others |", "|---|---|---|---|---|"]
    for line in lines:
        if line["section"] != "kernels":
            continue
        figures = dict(line.get("figures", {"name": line["name"], "failed": not_measured(line)}))
        name, known = figures.pop("name", "?"), [figures.pop(key, "") for key in ("tflops", "torch_tflops", "ratio")]
        others = ", ".join(f"{key} {value:.2g}" if isinstance(value, float) and value < 1 else f"{key} {value}"
                           for key, value in figures.items() if key != "where")
        rows.append(f"| {name} | {known[0]} | {known[1]} | {known[2]} | {others.replace('|', '/')} |")
    return rows


def decode(lines: list[Figures]) -> list[str]:
    rows = [
        "| 7B shape, bf16 products | decoding | a step | of bandwidth | prompts | of peak | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, line in of(lines, "decode").items():
        it = line.get("figures")
        if not it:
            rows.append(f"| {name} | {not_measured(line)} | | | | | |")
            continue
        prompts = f"{it['prompt_tokens_per_second']:,.0f} tokens/s of {it['prompt_tokens']}"
        of_peak = it.get("prompt_of_peak")
        rows.append(
            f"| {name}, {it['streams']} streams | {it['decode_tokens_per_second']:,.1f} tokens/s "
            f"| {1e3 * it['step_seconds']:.2f} ms | {short(it['read_bytes_per_second'], 'B/s')}, "
            f"{100 * it['of_read_bandwidth']:.0f}% | {prompts} | {f'{100 * of_peak:.0f}%' if of_peak else '–'} "
            f"| {short(it.get('peak_device_bytes'), 'B')} |"
        )
    return rows


def rl(lines: list[Figures]) -> list[str]:
    rows = ["| GRPO, dense-500m | a step | sampling | sampled tokens/s | one at a time | difference |",
            "|---|---|---|---|---|---|"]
    for name, line in of(lines, "rl").items():
        it = line.get("figures")
        if not it:
            rows.append(f"| {name} | {not_measured(line)} | | | | |")
            continue
        rows.append(
            f"| {name} | {it['step_seconds']:.2f} s | {it['rollout_seconds']:.2f} s "
            f"| {it['sampled_tokens_per_second']:,.0f} | {it['one_at_a_time_tokens_per_second']:,.0f} "
            f"| {it['logprob_difference_max']} |"
        )
    return rows


SECTIONS = {
    "conformance": conformance,
    "train": train,
    "bits": bits,
    "stages": stages,
    "kernels": kernels,
    "decode": decode,
    "rl": rl,
}


def printed(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def write(folder: Path) -> None:
    lines = all_of(folder)
    known = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    query = ["nvidia-smi", f"--query-gpu={known}", "--format=csv,noheader"]
    version = printed([os.environ.get("WELS", "target/gpu/wels"), "--version"])
    text = [f"# {printed(query) or 'no card'}", "", f"{version}, {time.strftime('%F', time.gmtime())}"]
    for section, table in SECTIONS.items():
        if any(line["section"] == section for line in lines):
            try:
                text += ["", *table(lines)]
            except Exception as problem:  # the other sections have their figures
                text += ["", f"{section}: its figures are not as expected, {problem!r}"]
    (folder / "gpu.md").write_text("\n".join(text) + "\n")


def passed(folder: Path) -> bool:
    lines = all_of(folder)
    must = [*of(lines, "conformance").values(), *of(lines, "stages").values()]
    suites = all(line["code"] == 0 for line in must)
    return suites and all(len(set(values)) == 1 and values[0] is not None for values in losses(lines).values())


def main() -> int:
    what, *words, folder = sys.argv[1:]
    path = Path(folder)
    match what, words:
        case "keep", [section, name, code, seconds]:
            keep(path, section, name, int(code), int(seconds))
        case "forget", [section]:
            forget(path, section)
        case "write", []:
            write(path)
        case "passed", []:
            return 0 if passed(path) else 1
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
