"""Writes crates/data/tests/oracle/tiktoken/: two small vocabularies of ranks, and the ids that tiktoken gives texts.

    pip install -r requirements.txt
    python scripts/oracle/make_tiktoken.py

NAME.tiktoken is trained on the texts and on this directory's programs behind the published expressions of Kimi K2
(`tokenization_kimi.py`) and Qwen (`tokenization_qwen.py`); the published ranks are too large to commit. NAME.json has
ids by `tiktoken` for the texts, for pieces of the programs, and for tokens in random order.
"""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import tiktoken
from make_text import QWEN2, TEXTS
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/data/tests/oracle/tiktoken"

HAN = r"[\p{Han}]+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI = "|".join([
    HAN, rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT}", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT}",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])  # fmt: skip


def programs() -> str:
    return "\n".join(path.read_text() for path in sorted(Path(__file__).resolve().parent.glob("make_*.py")))


def train(expression: str, size: int) -> dict[bytes, int]:
    """Ranks: the bytes, then merges in order."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *programs().split("\n\n")], trainer)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {bytes(byte_of[c] for c in token): rank for rank, (token, _) in enumerate(vocab)}


def texts(ranks: dict[bytes, int]) -> list[str]:
    generator, tokens, all_programs = random.Random(1), list(ranks), programs()
    found = list(TEXTS)
    for _ in range(100):
        at = generator.randrange(len(all_programs) - 200)
        found.append(all_programs[at : at + generator.randrange(1, 200)])
        shuffled = b"".join(generator.choice(tokens) for _ in range(generator.randrange(1, 40)))
        found.append(shuffled.decode(errors="ignore"))
        found.append(generator.choice("ae t中=\n") * generator.randrange(1, 60))
    return found


def write(name: str, expression: str, size: int) -> None:
    """Writes the files of one vocabulary."""
    ranks = train(expression, size)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (OUT / f"{name}.tiktoken").write_text("".join(lines))
    encoding = tiktoken.Encoding(name, pat_str=expression, mergeable_ranks=ranks, special_tokens={})
    cases = [{"text": text, "ids": encoding.encode_ordinary(text)} for text in texts(ranks)]
    made_by = f"scripts/oracle/make_tiktoken.py, tiktoken {tiktoken.__version__}"
    (OUT / f"{name}.json").write_text(json.dumps({"made_by": made_by, "texts": cases}, ensure_ascii=False) + "\n")


def main() -> None:
    """Writes all files."""
    OUT.mkdir(parents=True, exist_ok=True)
    write("kimi", KIMI, 1100)
    write("qwen", QWEN2, 900)


if __name__ == "__main__":
    main()
