"""The documentation of a Rust crate as Markdown: its *.md files, and of every source file the doc comments.

    python scripts/rust_docs.py CRATE_FOLDER OUT_FOLDER

A doc comment stands under the line of code that it is about. Code blocks are left out, since they are no prose: with
--code they stay. OUT_FOLDER is what `data.sources` of recipes/vertical.toml names.
"""

import argparse
import pathlib
import re


def item_of(line: str) -> str:
    """The head of an item of Rust, without its body."""
    return re.split(r"[{;]|\s=\s", line.strip())[0].strip().rstrip(",")


def documented(source: str) -> list[str]:
    """Markdown of a source file: what is said of the module, then each public item with what is said of it."""
    parts, comment, inner = [], [], []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("//!"):
            inner.append(text[3:].removeprefix(" "))
        elif text.startswith("///"):
            comment.append(text[3:].removeprefix(" "))
        elif comment and (not text or text.startswith("#[") or text.startswith("//")):
            continue
        elif comment:
            if re.match(r"pub(\s|\()|fn |macro_rules|[A-Z]\w*\s*[,({]?", text):
                parts.append(f"### `{item_of(text)}`\n\n" + "\n".join(comment))
            comment = []
    return (["\n".join(inner)] if inner else []) + parts


def without_code(text: str) -> str:
    return re.sub(r"^\s*(```|~~~).*?^\s*\1[^\n]*$", "", text, flags=re.S | re.M)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crate", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--code", action="store_true", help="keep blocks of code")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    written = 0
    for path in sorted([*args.crate.rglob("*.md"), *args.crate.glob("src/**/*.rs")]):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(args.crate)
        if path.suffix == ".rs":
            parts = documented(text)
            if not parts:
                continue
            text = f"# {args.crate.name}, `{name}`\n\n" + "\n\n".join(parts)
        text = text if args.code else without_code(text)
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
        (args.out / (str(name).replace("/", "-").removesuffix(path.suffix) + ".md")).write_text(text, encoding="utf-8")
        written += len(text)
    print(f"{written} bytes of Markdown in {args.out}")


if __name__ == "__main__":
    main()
