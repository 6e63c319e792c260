"""Write the oracle files of crates/model/tests/janus: what `transformers` makes of text and pictures with Janus.

    python -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python make_janus.py

For each of three tiny models a folder with

* config.json — as `transformers` writes it;
* oracle.json — the token ids, the codes, greedy codes, greedy codes with guidance as `generate` draws them in image
  mode (the first token of the text is BOS there, the last the begin of an image), and how far float32 PyTorch is from
  the values here;
* oracle.safetensors — `vision` (states of the tower), `features` (behind the aligner), `logits` (of text with a
  picture), `code_logits` (after a text and after each of its codes), `latents` (of the VQ encoder) and `pixels` (of the
  decoder), each as [rows, columns], float32.

* gradients.safetensors — of the VQ tokenizer's objective (`learned`), for each parameter under its name: the largest
  absolute value, up to 48 elements, and the products with four vectors of length 1 (`digest`).
* learnt.safetensors — of every parameter but the VQ tokenizer's, of a mean cross-entropy over text and codes
  together, for three sequences: text, a picture drawn after text, and text about a picture; and `loss`.

And resized.json: bytes of pictures and what `torch.nn.functional.interpolate` with `antialias` makes of them, rounded,
which is what `transformers`' image processor calls for pictures of bytes.

Weights and pixels come from a hash of each name (weights.py); matrices and convolutions are uniform with variance
1 / inputs of an output. Everything is computed in float64, but for the casts to float32 inside `transformers`, and
rounded once. The script refuses a model in which a code
or a greedy choice hangs on rounding.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, JanusConfig, JanusForConditionalGeneration
from weights import uniform, weight

OUTPUT = Path(__file__).resolve().parents[2] / "crates" / "model" / "tests" / "janus"
MARGIN = 1e-4
"""Least difference, of the largest, between the best and the second best code."""


def shape(
    text: dict[str, Any],
    vision: dict[str, Any],
    vq: dict[str, Any],
    image_token_id: int,
    tied: bool = False,
) -> dict[str, Any]:
    """A configuration whose widths fit each other."""
    d = text["hidden_size"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2
    common = {"max_position_embeddings": 96, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return {
        "image_token_id": image_token_id,
        "tie_word_embeddings": tied,
        "text_config": common | {"model_type": "llama", "tie_word_embeddings": tied} | text,
        "vision_config": {"projection_dim": d, "num_image_tokens": tokens} | vision,
        "vq_config": {"projection_dim": d, "image_token_embed_dim": d} | vq,
    }


MODELS = {
    "plain": shape(
        {
            "vocab_size": 80,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        {
            "hidden_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 12,
            "patch_size": 4,
            "mlp_ratio": 3.0,
        },
        {
            "embed_dim": 4,
            "num_embeddings": 50,
            "latent_channels": 12,
            "base_channels": 32,
            "channel_multiplier": [1, 2],
            "num_res_blocks": 1,
        },
        7,
    ),
    "deep": shape(
        {
            "vocab_size": 70,
            "hidden_size": 32,
            "intermediate_size": 44,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        {
            "hidden_size": 36,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 20,
            "patch_size": 5,
            "attention_bias": False,
            "depth": 3,
            "layer_norm_eps": 1e-5,
        },
        {
            "embed_dim": 8,
            "num_embeddings": 33,
            "latent_channels": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 3],
            "num_res_blocks": 2,
            "num_hidden_layers": 3,
        },
        69,
    ),
    "tied": shape(
        {
            "vocab_size": 60,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
            "mlp_ratio": 2.5,
            "depth": 1,
        },
        {
            "embed_dim": 3,
            "num_embeddings": 24,
            "latent_channels": 8,
            "base_channels": 64,
            "channel_multiplier": [2, 1, 1],
            "num_res_blocks": 1,
            "num_hidden_layers": 1,
        },
        3,
        tied=True,
    ),
}


def janus_weight(name: str, size: tuple[int, ...]) -> np.ndarray:
    """As weights.py, and for convolutions and code books the variance of their inputs."""
    if len(size) < 2 or name.endswith("embed_tokens.weight"):
        return weight(name, size)
    values = math.sqrt(3.0 / math.prod(size[1:])) * uniform(name, math.prod(size))
    return values.astype(np.float32).reshape(size)


def fill(model: JanusForConditionalGeneration) -> None:
    """Sets all weights."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(janus_weight(name, tuple(parameter.shape))))


def pixels(name: str, channels: int, side: int, dtype: torch.dtype) -> Tensor:
    """A picture `[1, channels, side, side]` of the hash of its name."""
    values = uniform(name, channels * side * side).astype(np.float32).reshape(1, channels, side, side)
    return torch.from_numpy(values).to(dtype)


def margin(scores: Tensor) -> float:
    """The least difference between a row's two best, of the largest."""
    best = scores.topk(2, dim=-1).values
    return float((best[..., 0] - best[..., 1]).min() / scores.abs().max())


def ids(name: str, count: int, below: int, without: int) -> list[int]:
    """Token ids of the hash of a name."""
    drawn = np.floor((uniform(name, count) + 1.0) / 2.0 * below).astype(int)
    return [int(token) if token != without else (without + 1) % below for token in drawn]


GUIDANCE = 5.0
"""Scale of classifier-free guidance."""


def generated(model: JanusForConditionalGeneration, text: list[int], pad: int) -> list[int]:
    """Greedy codes with guidance, by the model's own `generate`."""
    bos, boi = text[0], text[-1]
    assert bos not in text[1:] and boi not in text[:-1]
    special = {"bos_token_id": bos, "pad_token_id": pad, "eos_token_id": None}
    config = GenerationConfig(
        **special,
        do_sample=False,
        guidance_scale=GUIDANCE,
        max_length=96,
        generation_kwargs={"boi_token_id": boi},
    )
    tokens = torch.tensor([text])
    codes = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), generation_mode="image", generation_config=config
    )
    return codes[0].tolist()


@torch.no_grad()
def compute(name: str, config: JanusConfig, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything of one model, in a number format."""
    model = JanusForConditionalGeneration(config).eval()
    fill(model)
    model = model.to(dtype)
    vision, vq = config.vision_config, config.vq_config
    side = vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)
    picture = pixels(f"{name}.seen", vision.num_channels, vision.image_size, dtype)
    seen = model.model.get_image_features(picture, return_dict=True)
    text = ids(f"{name}.text", 9, config.text_config.vocab_size, config.image_token_id)
    tokens = text[:4] + [config.image_token_id] * vision.num_image_tokens + text[4:]
    logits = model(input_ids=torch.tensor([tokens]), pixel_values=picture, use_cache=False).logits[0]

    count = vq.num_patches**2
    codes = ids(f"{name}.codes", count, vq.num_embeddings, -1)
    embedded = model.get_input_embeddings()(torch.tensor([text]))

    def code_logits(codes: list[int], embedded: Tensor = embedded) -> Tensor:
        drawn = model.prepare_embeddings_for_image_generation(torch.tensor([codes], dtype=torch.long))
        states = model.model.language_model(inputs_embeds=torch.cat([embedded, drawn], 1), use_cache=False)
        return model.model.generation_head(states.last_hidden_state[0, len(text) - 1 :])

    greedy: list[int] = []
    margins = []
    for _ in range(count):
        scores = code_logits(greedy)[-1]
        margins.append(margin(scores))
        greedy.append(int(scores.argmax()))

    pad = config.image_token_id
    unconditional = model.get_input_embeddings()(torch.tensor([text[:1] + [pad] * (len(text) - 2) + text[-1:]]))
    guided: list[int] = []
    for _ in range(count):
        without = code_logits(guided, unconditional)[-1]
        scores = without + (code_logits(guided)[-1] - without) * GUIDANCE
        margins.append(margin(scores))
        guided.append(int(scores.argmax()))
    assert generated(model, text, pad) == guided, "codes of generate"

    drawn = pixels(f"{name}.drawn", vq.in_channels, side, dtype)
    encoded = model.model.vqmodel.encode(drawn, return_dict=True)
    latents = model.model.vqmodel.quant_conv(encoded.last_hidden_state)[0].flatten(1).T
    book = model.model.vqmodel.quantize.embedding.weight
    margins.append(margin(-((latents[:, None] - book[None]) ** 2).sum(-1)))
    decoded = model.model.vqmodel.decode(torch.tensor([codes]))[0]
    numbers = {
        "text": text,
        "tokens": tokens,
        "codes": codes,
        "greedy": greedy,
        "pad": pad,
        "guidance": GUIDANCE,
        "guided": guided,
        "encoded": encoded.image_tokens.flatten().tolist(),
        "margin": min(margins),
    }
    tensors = {
        "vision": seen.last_hidden_state[0],
        "features": seen.pooler_output[0],
        "logits": logits,
        "code_logits": code_logits(codes),
        "latents": latents,
        "pixels": decoded.flatten(1),
    }
    return numbers, tensors


def digest(name: str, gradient: Tensor) -> Tensor:
    """What is kept of a gradient: see the header."""
    flat = gradient.flatten()
    count = flat.numel()
    places = [i * count // min(count, 48) for i in range(min(count, 48))]
    products = []
    for vector in range(4):
        values = torch.from_numpy(uniform(f"{name}.{vector}", count).astype(np.float32)).to(flat.dtype)
        products.append(float((flat * values).sum() / values.norm()))
    return torch.tensor([float(flat.abs().max()), *flat[places].tolist(), *products], dtype=flat.dtype)


def learned(name: str, config: JanusConfig, dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
    """The gradients of 0.3·L1 + L2 + codebook + 0.25·commitment (van den Oord et al. 2017, eq. 3) for two pictures.

    Latents and codes have length 1, straight through.
    """
    model = JanusForConditionalGeneration(config).eval()
    fill(model)
    vqmodel = model.to(dtype).model.vqmodel
    vq = config.vq_config
    side = vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)
    drawn = [pixels(f"{name}.learned{i}", vq.in_channels, side, dtype) for i in range(2)]
    x = torch.cat(drawn)
    book = vqmodel.quantize.embedding.weight
    with torch.no_grad():
        book.copy_(functional.normalize(book, dim=1))
    latents = functional.normalize(vqmodel.quant_conv(vqmodel.encoder(x)), dim=1)
    scores = torch.einsum("bdhw,nd->bhwn", latents.detach(), book.detach())
    codes = book[scores.argmax(-1)].permute(0, 3, 1, 2)
    through = latents + (codes - latents).detach()
    out = vqmodel.decoder(vqmodel.post_quant_conv(through))
    difference = out - x
    loss = 0.3 * difference.abs().mean() + (difference**2).mean()
    loss = loss + ((codes - latents.detach()) ** 2).mean() + 0.25 * ((codes.detach() - latents) ** 2).mean()
    loss.backward()
    prefix = "model.vqmodel."
    gradients = {prefix + key: parameter.grad for key, parameter in vqmodel.named_parameters()}
    return margin(scores), {key: digest(key, gradient) for key, gradient in gradients.items()}


def learnt(name: str, config: JanusConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of the mean cross-entropy over all targets of three sequences, for all but the VQ tokenizer."""
    model = JanusForConditionalGeneration(config)
    fill(model)
    model = model.to(dtype).eval()
    vision, vq, vocab = config.vision_config, config.vq_config, config.text_config.vocab_size
    picture = pixels(f"{name}.seen", vision.num_channels, vision.image_size, dtype)
    features = model.model.aligner(model.model.vision_model(picture).last_hidden_state)[0]
    text = ids(f"{name}.text", 9, vocab, config.image_token_id)
    codes = ids(f"{name}.codes", vq.num_patches**2, vq.num_embeddings, -1)
    embed = model.get_input_embeddings()

    def run(embedded: Tensor) -> Tensor:
        return model.model.language_model(inputs_embeds=embedded[None], use_cache=False).last_hidden_state[0]

    def loss(logits: Tensor, targets: list[int]) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, torch.tensor(targets), reduction="sum")

    told = run(embed(torch.tensor(text[:8])))
    drawn = model.prepare_embeddings_for_image_generation(torch.tensor([codes[:-1]], dtype=torch.long))[0]
    draws = run(torch.cat([embed(torch.tensor(text[:5])), drawn]))
    sees = run(torch.cat([embed(torch.tensor(text[:2])), features, embed(torch.tensor(text[2:8]))]))
    total = loss(model.lm_head(told), text[1:9])
    total = total + loss(model.model.generation_head(draws[4:]), codes)
    total = total + loss(model.lm_head(sees[-6:]), text[3:9])
    total = total / (8 + len(codes) + 6)
    total.backward()
    kept = {
        key: parameter.grad.reshape(parameter.shape)
        for key, parameter in model.named_parameters()
        if parameter.grad is not None and "vqmodel" not in key
    }
    return kept | {"loss": total.detach().reshape(1)}


def resized() -> list[dict[str, Any]]:
    """Pictures larger and smaller than the square of 12 pixels, wide and tall, by both filters."""
    cases = []
    for width, height, to_width, to_height in [(30, 17, 12, 7), (7, 10, 8, 12), (5, 5, 12, 12), (12, 40, 4, 12)]:
        for mode in ["bilinear", "bicubic"]:
            values = np.floor((uniform(f"{width}x{height}", width * height * 3) + 1.0) * 128.0).astype(np.uint8)
            picture = torch.from_numpy(values.reshape(1, height, width, 3)).permute(0, 3, 1, 2).float()
            out = torch.nn.functional.interpolate(picture, size=(to_height, to_width), mode=mode, antialias=True)
            out = out.round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0)
            case = {"width": width, "height": height, "to_width": to_width, "to_height": to_height, "mode": mode}
            cases.append(case | {"bytes": out.flatten().tolist()})
    return cases


def main() -> None:
    """Writes all folders."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "resized.json").write_text(json.dumps(resized()) + "\n")
    for name, shape in MODELS.items():
        folder = OUTPUT / name
        folder.mkdir(parents=True, exist_ok=True)
        config = JanusConfig(**shape)
        numbers, tensors = compute(name, config, torch.float64)
        if numbers["margin"] < MARGIN:
            raise SystemExit(f"{name}: a code hangs on rounding, {numbers['margin']:.1e}")
        single_numbers, single = compute(name, config, torch.float32)
        error = {
            key: float((single[key].double() - exact).abs().max() / exact.abs().max()) for key, exact in tensors.items()
        }
        assert all(single_numbers[key] == numbers[key] for key in ["greedy", "guided", "encoded"])
        least, gradients = learned(name, config, torch.float64)
        if least < MARGIN:
            raise SystemExit(f"{name}: a learned code hangs on rounding, {least:.1e}")
        save_file({key: value.float() for key, value in gradients.items()}, folder / "gradients.safetensors")
        config.save_pretrained(folder)
        (folder / "oracle.json").write_text(json.dumps(numbers | {"float32_error": error}) + "\n")
        save_file({key: value.float().contiguous() for key, value in tensors.items()}, folder / "oracle.safetensors")
        exact, single = learnt(name, config, torch.float64), learnt(name, config, torch.float32)
        worst = max(
            float((single[key].double() - it).abs().max() / it.abs().max())
            for key, it in exact.items()
            if not key.endswith("k_proj.bias")
        )
        print(name, len(exact), "gradients, float32 is off by", worst)
        save_file({key: it.float().contiguous() for key, it in exact.items()}, folder / "learnt.safetensors")
        print(name, numbers["margin"], error, {key: tuple(value.shape) for key, value in tensors.items()})


if __name__ == "__main__":
    main()
