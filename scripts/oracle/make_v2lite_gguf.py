"""Write a GGUF file of DeepSeek-V2-Lite's shape with random weights in Q4_0: 8.8 GB to measure speed with.

    python make_v2lite_gguf.py OUT.gguf [--tokenizer FILE.gguf] [--layers 27]

The shape is that of the published config.json (27 layers, 64 routed and 2 shared experts, 6 of them a token, no query
latent), the names and keys those of llama.cpp's converter. Each tensor's bytes follow from the seed and its name; they
are made and written one by one. A block is 32 random nibbles and a scale that gives the matrix a variance of 1/columns,
so that activations neither vanish nor overflow. With --tokenizer the vocabulary is that of another file, filled up with
unused tokens; without, there is none.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, RopeScalingType

VOCAB, WIDTH, HEADS, KV_RANK, NOPE, ROPE, V = 102400, 2048, 16, 512, 128, 64, 128
DENSE, EXPERTS, SHARED, USED, EXPERT = 10944, 64, 2, 6, 1408
BLOCK, BLOCK_BYTES = 32, 18


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, slowest-changing dimension first."""
    yield "token_embd.weight", (VOCAB, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    yield "output.weight", (VOCAB, WIDTH)
    for layer in range(layers):
        attention = {
            "attn_norm": (WIDTH,),
            "attn_q": (HEADS * (NOPE + ROPE), WIDTH),
            "attn_kv_a_mqa": (KV_RANK + ROPE, WIDTH),
            "attn_kv_a_norm": (KV_RANK,),
            "attn_k_b": (HEADS, KV_RANK, NOPE),
            "attn_v_b": (HEADS, V, KV_RANK),
            "attn_output": (WIDTH, HEADS * V),
            "ffn_norm": (WIDTH,),
        }
        dense = {"ffn_gate": (DENSE, WIDTH), "ffn_up": (DENSE, WIDTH), "ffn_down": (WIDTH, DENSE)}
        sparse = {
            "ffn_gate_inp": (EXPERTS, WIDTH),
            "ffn_gate_exps": (EXPERTS, EXPERT, WIDTH),
            "ffn_up_exps": (EXPERTS, EXPERT, WIDTH),
            "ffn_down_exps": (EXPERTS, WIDTH, EXPERT),
            "ffn_gate_shexp": (SHARED * EXPERT, WIDTH),
            "ffn_up_shexp": (SHARED * EXPERT, WIDTH),
            "ffn_down_shexp": (WIDTH, SHARED * EXPERT),
        }
        for name, shape in (attention | (dense if layer == 0 else sparse)).items():
            yield f"blk.{layer}.{name}.weight", shape


def is_plain(name: str, shape: tuple[int, ...]) -> bool:
    """Norms and routers are stored as F32."""
    return len(shape) == 1 or "ffn_gate_inp" in name


def byte_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return *shape[:-1], shape[-1] // BLOCK * BLOCK_BYTES


def numbers(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor's content: f32 numbers, or the bytes of Q4_0 blocks."""
    random = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    if is_plain(name, shape):
        return random.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)
    blocks = np.prod(shape) // BLOCK
    content = random.integers(0, 256, (blocks, BLOCK_BYTES), dtype=np.uint8)
    # A uniform nibble less 8 has a standard deviation of 4.61.
    scale = np.float16(shape[-1] ** -0.5 / 4.61)
    content[:, :2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    return content.reshape(byte_shape(shape))


def add_keys(writer: GGUFWriter, layers: int) -> None:
    writer.add_name("random weights in the shape of DeepSeek-V2-Lite")
    writer.add_block_count(layers)
    writer.add_context_length(163840)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(DENSE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB)
    writer.add_leading_dense_block_count(1)
    writer.add_kv_lora_rank(KV_RANK)
    writer.add_key_length(KV_RANK + ROPE)
    writer.add_value_length(KV_RANK)
    writer.add_key_length_mla(NOPE + ROPE)
    writer.add_value_length_mla(V)
    writer.add_rope_dimension_count(ROPE)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    writer.add_expert_shared_count(SHARED)
    writer.add_expert_feed_forward_length(EXPERT)
    writer.add_expert_weights_scale(1.0)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(40.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_yarn_log_mul(0.0707)
    writer.add_file_type(2)
    writer.add_quantization_version(2)


def add_vocabulary(writer: GGUFWriter, source: Path | None) -> None:
    if source is None:
        writer.add_tokenizer_model("no_vocab")
        return
    fields = GGUFReader(source).fields
    content = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
    tokens, kinds = content["tokenizer.ggml.tokens"], content["tokenizer.ggml.token_type"]
    unused = range(len(tokens), VOCAB)
    writer.add_tokenizer_model(content["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(content["tokenizer.ggml.pre"])
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in unused])
    writer.add_token_types(kinds + [5 for _ in unused])
    writer.add_token_merges(content["tokenizer.ggml.merges"])
    writer.add_bos_token_id(content["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(content["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(content.get("tokenizer.ggml.add_bos_token", False))
    if template := content.get("tokenizer.chat_template"):
        writer.add_chat_template(template)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    temporary = arguments.out.with_suffix(".unfinished")
    writer = GGUFWriter(temporary, "deepseek2")
    add_keys(writer, arguments.layers)
    add_vocabulary(writer, arguments.tokenizer)
    tensors = list(shapes(arguments.layers))
    for name, shape in tensors:
        if is_plain(name, shape):
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
        else:
            bytes_ = byte_shape(shape)
            kind = GGMLQuantizationType.Q4_0
            writer.add_tensor_info(name, bytes_, np.dtype(np.uint8), int(np.prod(bytes_)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in tensors:
        writer.write_tensor_data(numbers(name, shape, arguments.seed))
    writer.close()
    temporary.rename(arguments.out)


if __name__ == "__main__":
    main()
