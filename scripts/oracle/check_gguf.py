"""Check `wels convert` against llama.cpp and `transformers`.

    pip install -r requirements.txt llama-cpp-python==0.3.36 sentencepiece==0.2.1
    python check_gguf.py --wels ../../target/release/wels [--llama-cpp SOURCES] [--gguf MODEL.gguf]

For a small random model of each family, saved by `transformers`:

* `wels convert` writes a GGUF file; llama.cpp loads it, and its log-probabilities agree with those of `transformers`
  (llama.cpp rounds activations in some places, so the bound is loose; a wrong permutation is off by whole units);
* `wels score` of that file agrees with `wels score` of the directory;
* `wels convert` back to a directory gives the tensors that `transformers` saved, bit for bit;
* of 24 greedy tokens of `transformers` llama.cpp chooses the same, and Wels gives them the same log-probabilities;
* with --llama-cpp, the sources of llama.cpp (`vendor/llama.cpp` in the sdist of llama-cpp-python): the file that its
  converter writes has the log-probabilities of `transformers` in `wels score`.

With --gguf, a published file is turned into a directory that `transformers` loads, whose log-probabilities are compared
with llama.cpp's and with those of `wels score` on the file itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = ROOT / "crates/data/tests/oracle/tokenizers.json"
TOKENS = 48
TOLERANCE = 2e-3
"""Largest difference of a log-probability in float32."""
TOLERANCE_ROUNDED = 0.1
"""The same in the median where llama.cpp rounds activations to 8 or 16 bits: single tokens may differ by much more, in
mixtures because they choose another expert."""

COMMON = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.15, "bos_token_id": 0, "eos_token_id": 1,
}
MLA = {
    "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "num_key_value_heads": 4,
    "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}
GLM = {
    "num_key_value_heads": 2, "head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "partial_rotary_factor": 0.5, "num_nextn_predict_layers": 0,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.707, "mscale_all_dim": 0.707}
LONG_ROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
             "long_factor": [1.0, 1.5, 2.5, 4.5, 8.0, 14.0, 25.0, 40.0]}
GEMMA = {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32,
         "tie_word_embeddings": True, "pad_token_id": 0}
MODELS = {
    "llama": ("llama", "smollm2", COMMON | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-3": ("llama", "llama3", COMMON | {"num_key_value_heads": 2, "rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}}),
    "qwen2": ("qwen2", "qwen2", COMMON | {"num_key_value_heads": 2}),
    "mistral": ("mistral", "smollm2", COMMON | {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen3": ("qwen3", "qwen2", COMMON | {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-yarn": ("qwen3", "qwen2", COMMON | {"num_key_value_heads": 2, "head_dim": 32, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.0}}),
    "qwen3-moe": ("qwen3_moe", "qwen2", COMMON | {"num_key_value_heads": 2, "head_dim": 32, "num_experts": 8,
        "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "glm4-moe": ("glm4_moe", "qwen2", COMMON | GLM | {"use_qk_norm": True, "attention_bias": True}),
    "glm4-moe-plain": ("glm4_moe", "qwen2", COMMON | GLM | {"routed_scaling_factor": 2.5}),
    "gpt-oss": ("gpt_oss", "qwen2", COMMON | {"num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 8,
        "num_experts_per_tok": 3, "sliding_window": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}),
    "glm4": ("glm4", "qwen2", COMMON | {"num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0}),
    "gemma2": ("gemma2", "smollm2", COMMON | GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", "smollm2", COMMON | GEMMA | {"num_hidden_layers": 7, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
    # llama.cpp looks for tokens of the published vocabulary in whatever has `phi3` in its name.
    "phi": ("phi3", "smollm2", COMMON | {"num_key_value_heads": 2, "pad_token_id": 0}),
    # So short that every text is a long one; or so long that none is, in llama.cpp's context either.
    "phi-long": ("phi3", "smollm2", COMMON | {"num_key_value_heads": 2, "pad_token_id": 0,
        "original_max_position_embeddings": 2, "rope_scaling": LONG_ROPE}),
    "phi-short": ("phi3", "smollm2", COMMON | {"num_key_value_heads": 2, "pad_token_id": 0,
        "original_max_position_embeddings": 512, "rope_scaling": LONG_ROPE}),
    "deepseek-v2-lite": ("deepseek_v2", "deepseek_v3", COMMON | MLA | {
        "num_hidden_layers": 27, "q_lora_rank": None, "rope_scaling": YARN, "initializer_range": 0.08}),
    "deepseek-v2": ("deepseek_v2", "deepseek_v3", COMMON | MLA | {"q_lora_rank": 48, "routed_scaling_factor": 16.0}),
    "deepseek-v3": ("deepseek_v3", "deepseek_v3", COMMON | MLA | {
        "q_lora_rank": 48, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
        "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}),
}


class Report:
    """Rows of the table, and whether all of them passed."""

    def __init__(self) -> None:
        self.passed = True
        print("| model | check | result | |\n|---|---|---|---|")

    def row(self, model: str, check: str, result: str, passed: bool) -> None:
        self.passed &= passed
        print(f"| {model} | {check} | {result} | {'ok' if passed else 'FAILED'} |", flush=True)


def make(name: str, folder: Path) -> transformers.PreTrainedModel:
    """A random model with a small tokenizer, as `transformers` saves it."""
    family, tokenizer, config = MODELS[name]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config)).float().eval()
    for tensor_name, tensor in model.state_dict().items():
        if tensor_name.endswith("norm.weight") or tensor_name.endswith(".bias"):
            tensor.add_(0.1 * torch.randn_like(tensor))
        if tensor_name.endswith("e_score_correction_bias"):
            tensor.copy_(0.05 * torch.randn_like(tensor))
    model.save_pretrained(folder)
    cases = {case["name"]: case["tokenizer"] for case in json.loads(TOKENIZERS.read_text())}
    (folder / "tokenizer.json").write_text(cases[tokenizer])
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return model


def wels(binary: Path, *arguments: object) -> str:
    command = [str(binary), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def score(binary: Path, model: Path, ids: list[int]) -> np.ndarray:
    said = json.loads(wels(binary, "score", model, "--ids", ",".join(map(str, ids)), "--json"))
    return np.array(said["logprobs"][1:])


def score_transformers(model: transformers.PreTrainedModel, ids: list[int], rows: int | None = None) -> np.ndarray:
    """Log-probabilities, of `rows` so many of the vocabulary."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1, :rows].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def open_llama(file: Path, context: int = 512) -> llama_cpp.Llama:
    f32 = llama_cpp.GGML_TYPE_F32
    sizes = {"n_ctx": context, "n_batch": context, "n_threads": 2}
    plain = {"type_k": f32, "type_v": f32, "flash_attn": False}
    return llama_cpp.Llama(str(file), logits_all=True, verbose=False, **sizes, **plain)


def score_llama(llama: llama_cpp.Llama, ids: list[int]) -> np.ndarray:
    llama.reset()
    llama.eval(ids)
    logits = torch.from_numpy(np.array(llama.scores[: len(ids) - 1], dtype=np.float64))
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def compare(report: Report, model: str, check: str, a: np.ndarray, b: np.ndarray, bound: float) -> None:
    difference = float(np.abs(a - b).max())
    report.row(model, check, f"log-probabilities at most {difference:.1e} apart", difference <= bound)


def compare_rounded(report: Report, model: str, check: str, a: np.ndarray, b: np.ndarray) -> None:
    middle = float(np.median(np.abs(a - b)))
    report.row(model, check, f"log-probabilities {middle:.1e} apart in the median", middle <= TOLERANCE_ROUNDED)


def check_made(name: str, binary: Path, directory: Path, report: Report) -> None:
    folder, file, back = directory / name, directory / f"{name}.gguf", directory / f"{name}-back"
    model = make(name, folder)
    wels(binary, "convert", folder, file, "--dtype", "f32")
    ids = torch.randint(0, 512, (TOKENS,), generator=torch.Generator().manual_seed(2)).tolist()
    expected = score_transformers(model, ids)
    check_greedy(name, model, binary, file, report)
    compare(report, name, "GGUF in llama.cpp", score_llama(open_llama(file), ids), expected, TOLERANCE)
    compare(report, name, "GGUF in wels, directory in transformers", score(binary, file, ids), expected, 1e-4)
    wels(binary, "convert", file, back, "--dtype", "f32")
    saved, restored = (load_file(path / "model.safetensors") for path in (folder, back))
    # GGUF has 1 + w of Gemma's norms, rounded.
    rounding = 1.2e-7 if name.startswith("gemma") else 0.0
    close = lambda key: bool(((saved[key] - restored[key]).abs() <= rounding * key.endswith("norm.weight")).all())
    same = saved.keys() == restored.keys() and all(close(key) for key in saved)
    report.row(name, "and back to a directory", f"{len(restored)} tensors", same)
    loaded, info = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32, output_loading_info=True)
    problems = {kind: names for kind, names in info.items() if names}
    report.row(name, "which transformers loads", str(problems or "all tensors"), not problems)
    compare(report, name, "with equal logits", score_transformers(loaded.eval(), ids), expected, 1e-5)
    for dtype in ["bf16", "q8_0"]:
        other = directory / f"{name}-{dtype}.gguf"
        wels(binary, "convert", folder, other, "--dtype", dtype)
        ours, theirs = score(binary, other, ids), score_llama(open_llama(other), ids)
        compare_rounded(report, name, f"{dtype} GGUF, wels and llama.cpp", ours, theirs)


CONVERT = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"  # it knows published vocabularies alone
TextModel._set_vocab_glm = TextModel._set_vocab_gpt2
from conversion.glm import Glm4Model
from conversion.phi import Phi3MiniModel
from conversion.gemma import Gemma2Model, Gemma3Model
for model in [Glm4Model, Phi3MiniModel, Gemma2Model, Gemma3Model]:
    model.set_vocab = TextModel._set_vocab_gpt2
import convert_hf_to_gguf
sys.argv = ["convert", sys.argv[2], "--outfile", sys.argv[3], "--outtype", "f32"]
convert_hf_to_gguf.main()
"""


def check_converted(name: str, sources: Path, binary: Path, directory: Path, report: Report) -> None:
    folder, file = directory / name, directory / f"{name}-llama-cpp.gguf"
    done = subprocess.run([sys.executable, "-c", CONVERT, sources, folder, file], capture_output=True, text=True)
    if done.returncode:
        return report.row(name, "llama.cpp's converter", done.stderr.strip().splitlines()[-1], False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # The converter leaves out rows of Gemma 3's embedding for which the tokenizer has no token.
    tensors = gguf.GGUFReader(file).tensors
    rows = next(int(tensor.shape[1]) for tensor in tensors if tensor.name == "token_embd.weight")
    ids = torch.randint(0, rows, (TOKENS,), generator=torch.Generator().manual_seed(2)).tolist()
    ours = score(binary, file, ids)
    compare(report, name, "llama.cpp's GGUF in wels", ours, score_transformers(model, ids, rows), 1e-4)


def check_greedy(name: str, model: transformers.PreTrainedModel, binary: Path, file: Path, report: Report) -> None:
    prompt = torch.tensor([[5, 77, 130]])
    length = {"max_new_tokens": 24, "min_new_tokens": 24}
    made = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **length)[0].tolist()
    llama = open_llama(file)
    llama.eval(made)
    chosen = [int(np.argmax(row)) for row in llama.scores[2 : len(made) - 1]]
    same = sum(ours == theirs for ours, theirs in zip(chosen, made[3:]))
    report.row(name, "greedy tokens in llama.cpp", f"{same} of 24", same == 24)
    ours, theirs = score(binary, file, made), score_transformers(model, made)
    compare(report, name, "greedy tokens in wels", ours, theirs, 1e-4)


PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Water boils at", "Once upon a time,"]


def check_published(file: Path, binary: Path, directory: Path, report: Report) -> None:
    directory.mkdir()
    folder = directory / "published"
    wels(binary, "convert", file, folder, "--dtype", "f32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llama = open_llama(file)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        theirs = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        report.row(file.name, f"tokens of {prompt!r}", f"{len(ids)}", ids == theirs)
        mask = torch.ones(1, len(ids), dtype=torch.long)
        made = model.generate(torch.tensor([ids]), attention_mask=mask, max_new_tokens=32, do_sample=False)[0].tolist()
        ours = score(binary, file, made)
        compare(report, file.name, f"wels on the file, transformers after {prompt!r}", ours, score_transformers(model, made), 1e-3)
        compare_rounded(report, file.name, f"wels and llama.cpp after {prompt!r}", ours, score_llama(llama, made))
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "1+1?"}]
    said = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    report.row(file.name, "chat template", repr(said[-60:]), "1+1?" in said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wels", type=Path, required=True, help="the binary")
    parser.add_argument("--gguf", type=Path, action="append", default=[], help="a published file; may be repeated")
    parser.add_argument("--llama-cpp", type=Path, help="the sources of llama.cpp")
    parser.add_argument("--model", choices=sorted(MODELS), action="append", help="instead of all; may be repeated")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    report = Report()
    with tempfile.TemporaryDirectory() as directory:
        for name in arguments.model or MODELS:
            check_made(name, arguments.wels, Path(directory), report)
            # The converter writes `attention_factor` under a key that llama.cpp does not take it from.
            if arguments.llama_cpp and "attention_factor" not in MODELS[name][2].get("rope_scaling", {}):
                check_converted(name, arguments.llama_cpp, arguments.wels, Path(directory), report)
        for file in arguments.gguf:
            check_published(file, arguments.wels, Path(directory) / file.stem, report)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
