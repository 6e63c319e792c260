"""One step of GRPO beside TRL's GRPOTrainer: the same model, prompts, answers and lengths, on this machine's CPU.

    python bench/peers/grpo.py [--model tiny 7m] [--prompts 8] [--samples 8] [--prompt 16] [--tokens 128] [--rounds 3]

The versions are in requirements.txt. A Llama-shaped model with random weights is written by
transformers and read by both. Every answer has full length at temperature 1, so both do the same work; the rewards are
given, every second answer being right, and there is no KL. TRL generates all answers of a step as one batch and learns
from them as one batch, in float32 and in bfloat16 (autocast); the faster one counts. Beside the steps, answers one at a
time: `transformers`' generate, as a naive loop has it, and Wels' engine. Each round runs all sides in turns; the table
has medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402

MODELS: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 768, "hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 224, "heads": 4},
    "7m": {"vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 768, "heads": 8},
}
TIMED_STEPS = 2
"""After one that is not."""
ALONE = 4
"""Answers of the naive loop."""


def write_model(name: str, folder: Path) -> None:
    """Weights, configuration, and a tokenizer whose words are `t0` to the last id."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = dict(MODELS[name])
    heads = shape.pop("heads")
    config = LlamaConfig(
        **shape, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512, rms_norm_eps=1e-6
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(shape["vocab_size"])}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t1", pad_token="t2").save_pretrained(folder)
    (folder / "tokenizer.json").rename(folder / "words.json")  # Wels needs none, and takes byte-level ones alone


def trl_step(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step of GRPOTrainer, and of its sampling."""
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(arguments.threads)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.folder / "words.json"), eos_token="t1", pad_token="t2"
    )
    batch = arguments.prompts * arguments.samples
    steps: list[float] = []
    sampling: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append(time.perf_counter() - self.begin)

    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            use_cpu=True,
            bf16=arguments.precision == "bf16",
            per_device_train_batch_size=batch,
            num_generations=arguments.samples,
            max_completion_length=arguments.tokens,
            generation_kwargs={"min_new_tokens": arguments.tokens},
            temperature=1.0,
            beta=0.0,
            max_steps=TIMED_STEPS + 1,
            gradient_checkpointing=False,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(3, tokenizer.vocab_size, (batch, arguments.prompt), generator=generator)
        rows = [{"prompt": " ".join(f"t{token}" for token in prompt)} for prompt in prompts.tolist()]
        seen: list[int] = []

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            seen.extend(len(answer) for answer in completion_ids)
            return [float(i % 2) for i in range(len(completion_ids))]

        trainer = GRPOTrainer(
            model=str(arguments.folder),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        generate = trainer._generate_and_score_completions

        def timed(*inputs: Any) -> Any:
            begin = time.perf_counter()
            result = generate(*inputs)
            sampling.append(time.perf_counter() - begin)
            return result

        trainer._generate_and_score_completions = timed
        trainer.train()
    assert set(seen) == {arguments.tokens} and len(seen) == batch * (TIMED_STEPS + 1), (set(seen), len(seen))
    return {"step": statistics.median(steps[1:]), "sampling": statistics.median(sampling[1:])}


def naive(arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of `generate`, one answer after the other."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32).eval()
    prompt = torch.randint(3, model.config.vocab_size, (1, arguments.prompt))
    lengths = {"max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens}

    def answer() -> None:
        model.generate(prompt, do_sample=True, temperature=1.0, top_k=0, pad_token_id=2, **lengths)

    with torch.inference_mode():
        answer()
        begin = time.perf_counter()
        for _ in range(ALONE):
            answer()
        return {"tokens_per_second": ALONE * arguments.tokens / (time.perf_counter() - begin)}


def side(arguments: argparse.Namespace, folder: Path, name: str, precision: str = "f32") -> dict[str, float]:
    """One side, in a process of its own."""
    command: list[Any] = [sys.executable, __file__, "--side", name, "--precision", precision, "--folder", folder]
    for key in ("prompts", "samples", "prompt", "tokens", "threads"):
        command += [f"--{key}", getattr(arguments, key)]
    printed = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def ours(arguments: argparse.Namespace, binary: Path, folder: Path) -> dict[str, float]:
    """What `wels bench rl` says."""
    command: list[Any] = [binary, "--threads", arguments.threads, "bench", "rl", folder, "--json"]
    for key in ("prompts", "samples", "prompt", "tokens"):
        command += [f"--{key}", getattr(arguments, key)]
    command += ["--steps", TIMED_STEPS]
    printed = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed)


def compare(arguments: argparse.Namespace, binary: Path, name: str, folder: Path) -> None:
    """A row of the table."""
    write_model(name, folder)
    rounds: dict[str, list[dict[str, float]]] = {"f32": [], "bf16": [], "naive": [], "wels": []}
    for _ in range(arguments.rounds):
        rounds["wels"].append(ours(arguments, binary, folder))
        for precision in ("f32", "bf16"):
            rounds[precision].append(side(arguments, folder, "trl", precision))
        rounds["naive"].append(side(arguments, folder, "naive"))

    def median(which: str, key: str) -> float:
        return statistics.median(run[key] for run in rounds[which])

    assert all(run["logprob_difference_max"] == 0 for run in rounds["wels"])
    step = {precision: median(precision, "step") for precision in ("f32", "bf16")}
    best = min(step, key=lambda precision: step[precision])
    tokens = arguments.prompts * arguments.samples * arguments.tokens
    mine, sampled, alone = (
        median("wels", key) for key in ("step_seconds", "sampled_tokens_per_second", "one_at_a_time_tokens_per_second")
    )
    loop = median("naive", "tokens_per_second")
    cells = [
        f"{step['f32']:.2f} / {step['bf16']:.2f} s | {mine:.3f} s | {step[best] / mine:.1f}×",
        f"{tokens / median(best, 'sampling'):.0f} | {loop:.0f} | {alone:.0f} | {sampled:.0f}",
        f"{sampled / loop:.1f}× / {sampled / alone:.1f}×",
        f"{median('wels', 'rollout_seconds') / mine:.0%}",
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    parser.add_argument("--side", choices=("trl", "naive"), help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="f32", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps({"trl": trl_step, "naive": naive}[arguments.side](arguments)))
        return
    binary = arguments.wels or wels.build()
    print(wels.machine())
    print(f"{arguments.prompts} × {arguments.samples} answers of {arguments.tokens} tokens behind {arguments.prompt}\n")
    print(
        "| model | step, TRL f32 / bf16 | Wels | ratio | sampled tok/s, TRL | generate, one at a time "
        "| Wels, one at a time | Wels | over both | rollouts' share of the step |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in arguments.model:
        with tempfile.TemporaryDirectory() as folder:
            compare(arguments, binary, name, Path(folder))


if __name__ == "__main__":
    main()
