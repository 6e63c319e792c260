"""Check that `transformers` computes from Janus models written by Wels what Wels computes from them.

    python -m venv .venv && .venv/bin/pip install -r requirements.txt
    cargo run --release -p wels-model --example export_janus -- FOLDER
    .venv/bin/python check_janus_export.py FOLDER

Loads each folder in FOLDER with JanusForConditionalGeneration, unchanged, in float32, and prints a table of

* missing, surplus or misshapen tensors;
* logits of text, of text with a picture and of codes after a text, and pixels of decoded codes, against
  `expected.safetensors`: at most 1e-5 of the largest apart;
* the keys of the configuration, as `transformers` has read them, and what generation and image processing are told.

Exits with 1 if anything differs. Versions: requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from check_export import Report
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoImageProcessor, GenerationConfig, JanusConfig, JanusForConditionalGeneration

TOLERANCE = 1e-5


@torch.no_grad()
def compute(model: JanusForConditionalGeneration, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `export_janus` computes, under the same names."""
    text, tokens, codes = (given[key].long()[None] for key in ["text", "tokens", "codes"])
    embedded = model.get_input_embeddings()(text)
    drawn = model.prepare_embeddings_for_image_generation(codes)
    states = model.model.language_model(inputs_embeds=torch.cat([embedded, drawn], 1), use_cache=False)
    decoded = model.model.vqmodel.decode(codes)[0]
    return {
        "text_logits": model(input_ids=text, use_cache=False).logits[0],
        "logits": model(input_ids=tokens, pixel_values=given["pixels"][None], use_cache=False).logits[0],
        "code_logits": model.model.generation_head(states.last_hidden_state[0, text.shape[1] - 1 :]),
        "decoded": decoded,
    }


def check(folder: Path, report: Report) -> None:
    """All rows of one model."""
    name = folder.name
    model, info = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    report.row(f"{name}: tensors", str(problems) if problems else f"{parameters:,} parameters", not problems)
    given = load_file(folder / "expected.safetensors")
    for key, theirs in compute(model.eval(), given).items():
        ours = given[key]
        same_shape = ours.shape == theirs.shape
        error = float((ours - theirs).abs().max() / theirs.abs().max()) if same_shape else float("inf")
        report.row(f"{name}: {key} {tuple(theirs.shape)}", f"at most {error:.1e} of the largest", error <= TOLERANCE)
    again = JanusConfig.from_pretrained(folder).to_dict()
    written = json.loads((folder / "config.json").read_text())
    for block in ["vision_config", "vq_config"]:
        differ = {key: again[block].get(key) for key, value in written[block].items() if again[block].get(key) != value}
        report.row(f"{name}: {block}", str(differ) if differ else f"{len(written[block])} keys kept", not differ)
    generation = GenerationConfig.from_pretrained(folder)
    begin = generation.generation_kwargs["boi_token_id"]
    report.row(f"{name}: generation", f"pictures begin after {begin}, guidance {generation.guidance_scale}", begin == 2)
    processor = AutoImageProcessor.from_pretrained(folder)
    rescaled = round(255 * processor.rescale_factor, 9)
    said = [processor.size.height, *processor.image_mean, *processor.image_std, rescaled]
    side = model.config.vision_config.image_size
    report.row(f"{name}: image processing", f"{side} pixels, values from -1 to 1", said == [side] + 6 * [0.5] + [1.0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what export_janus was given")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    report = Report()
    folders = sorted(path.parent for path in arguments.folder.glob("*/expected.safetensors"))
    if not folders:
        sys.exit(f"{arguments.folder} holds no model of export_janus")
    for folder in folders:
        check(folder, report)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
