"""Writes crates/data/tests/oracle/sentencepiece/: two small models of SentencePiece, and the ids that it gives texts.

    pip install -r requirements.txt
    python scripts/oracle/make_sentencepiece.py

NAME.model is trained on the texts and on this directory's programs: BPE with bytes, as Llama 2 (`prefix`) and Gemma
(`no_prefix`) have them, but for their size. NAME.json has ids and decoded texts by `sentencepiece`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import sentencepiece
from make_text import TEXTS

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/data/tests/oracle/sentencepiece"


def train(name: str, prefix: bool) -> None:
    """Writes the files of one model."""
    lines = [line for text in TEXTS for line in text.split("\n")]
    for program in sorted(Path(__file__).resolve().parent.glob("make_*.py")):
        lines += program.read_text().split("\n")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_text("\n".join(lines))
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(Path(folder) / name), vocab_size=900, model_type="bpe",
            byte_fallback=True, split_digits=True, normalization_rule_name="identity", add_dummy_prefix=prefix,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, user_defined_symbols=["<|user|>"],
            character_coverage=0.99, minloglevel=2,
        )  # fmt: skip
        model = (Path(folder) / f"{name}.model").read_bytes()
    (OUT / f"{name}.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    cases = [{"text": text, "ids": processor.encode(text)} for text in TEXTS]
    for case in cases:
        case["decoded"] = processor.decode(case["ids"])
    pieces = range(processor.get_piece_size())
    oracle = {
        "made_by": f"scripts/oracle/make_sentencepiece.py, sentencepiece {sentencepiece.__version__}",
        "pieces": [processor.id_to_piece(i) for i in pieces],
        "scores": [processor.get_score(i) for i in pieces],
        "texts": cases,
    }
    (OUT / f"{name}.json").write_text(json.dumps(oracle, ensure_ascii=False) + "\n")


def main() -> None:
    """Writes all files."""
    OUT.mkdir(parents=True, exist_ok=True)
    train("prefix", True)
    train("no_prefix", False)


if __name__ == "__main__":
    main()
