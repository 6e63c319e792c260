"""Sixteen clients over four adapters beside sixteen of the base alone: tokens a second over all, in turns.

    python bench/adapters/clients.py MODEL.gguf [--adapters 4] [--rank 16] [--clients 16] [--requests 48] [--prompt 256]
        [--tokens 128] [--rounds 3] [--threads 2]

One `wels serve` with the base and the adapters answers all; in each round the clients ask for the base alone, then
for the adapters in turns, and in the next round the other way round. The adapters are of all linear maps, with random A
and B as PEFT would write them. Requests are those of bench/peers/clients.py. Prints medians over the rounds, and the
share of the base's tokens a second that the adapters reach. Python's standard library alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
import clients  # noqa: E402
import wels  # noqa: E402

# SmolLM2-135M: layers, and the outputs and inputs of each linear map.
LAYERS = 30
MAPS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


def write_adapter(folder: Path, rank: int, seed: int) -> None:
    """A directory of PEFT's with small random numbers."""
    generator = random.Random(seed)
    folder.mkdir()
    tensors: dict[str, tuple[tuple[int, int], float]] = {}
    for layer in range(LAYERS):
        for name, (outputs, inputs) in MAPS.items():
            base = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{base}.lora_A.weight"] = ((rank, inputs), inputs**-0.5)
            tensors[f"{base}.lora_B.weight"] = ((outputs, rank), 0.01)
    header: dict[str, object] = {}
    end = 0
    for name, (shape, _) in sorted(tensors.items()):
        begin, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "adapter_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, (shape, size) in sorted(tensors.items()):
            count = shape[0] * shape[1]
            file.write(struct.pack(f"<{count}f", *(size * generator.uniform(-1, 1) for _ in range(count))))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    config |= {"target_modules": sorted({name.split(".")[1] for name in MAPS}), "base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()
    names = [f"adapter-{i}" for i in range(arguments.adapters)]
    rates: dict[str, list[float]] = {"base": [], "adapters": []}
    with tempfile.TemporaryDirectory() as temporary, open(Path(temporary) / "log", "w") as log:
        folder = Path(temporary)
        for i, name in enumerate(names):
            write_adapter(folder / name, arguments.rank, i)
        more = [part for name in names for part in ("--adapter", f"{name}={folder / name}")]
        server = clients.start_wels(arguments, binary, temporary, log, more)
        try:
            sides = [("base", [arguments.file.stem]), ("adapters", names)]
            for seed in range(arguments.rounds):
                for i, (side, models) in enumerate(sides if seed % 2 == 0 else sides[::-1]):
                    # Prompts of their own, since prefixes are kept.
                    rate, _ = asyncio.run(clients.load(server, arguments, 2 * seed + i, models))
                    rates[side].append(rate)
        finally:
            server.stop()
    print(wels.machine())
    print(f"\n{arguments.clients} clients, {arguments.requests} requests of {arguments.prompt} tokens, answers of")
    print(f"{arguments.tokens}; {arguments.adapters} adapters of rank {arguments.rank}; {arguments.rounds} rounds\n")
    base, adapted = (statistics.median(rates[side]) for side in ("base", "adapters"))
    print("| asked for | tokens/s | of the base |")
    print("|---|---|---|")
    print(f"| the base | {base:.0f} | |")
    print(f"| {arguments.adapters} adapters | {adapted:.0f} | {100 * adapted / base:.0f}% |")
    print("\nrounds:", "; ".join(f"{side} {', '.join(f'{rate:.0f}' for rate in all)}" for side, all in rates.items()))


if __name__ == "__main__":
    main()
