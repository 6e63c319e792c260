"""Many clients at once, beside llama-server: the same GGUF file, prompts and HTTP client, in turns.

    python bench/peers/clients.py FILE.gguf --llama-server PATH [--clients 16] [--requests 48] [--prompt 256]
        [--tokens 128] [--slots 4 8 16] [--rounds 3] [--threads 2]

`llama-server` is built natively from the source distribution of PyPI's llama-cpp-python 0.3.36 (cmake, GGML_NATIVE=ON)
and tried with each number of slots. Each client sends a request, reads its answer as it is streamed, and sends the next
one; prompts are made of random words, so none begins like another, and the end of the answer is ruled out, so that all
are equally long. Prints a table of medians over the rounds: tokens of answers a second over all clients, and the 50th
and 99th percentile of the time to the first token. Python's standard library alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from asyncio import StreamReader
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402

WORDS = """time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father power
hour game line end member law car city community name president team minute idea body information back parent face level
office door health person art war history party result change morning reason research girl guy moment air teacher force
education""".split()
# Ends of a text and of an answer in SmolLM2's vocabulary.
ENDS = {"0": -100, "2": -100}


@dataclass
class Server:
    """One that has been started."""

    process: subprocess.Popen[str]
    port: int
    model: str
    key: str = ""

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_llama(arguments: argparse.Namespace, slots: int, log: IO[str]) -> Server:
    port = free_port()
    context = slots * 2 * (arguments.prompt + arguments.tokens)
    command = [arguments.llama_server, "-m", arguments.file, "--port", port, "-np", slots, "-c", context]
    command += ["-t", arguments.threads, "-tb", arguments.threads]
    process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, text=True)
    return Server(process, port, arguments.file.stem)


def start_wels(
    arguments: argparse.Namespace, binary: Path, folder: str, log: IO[str], more: Sequence[str] = ()
) -> Server:
    port = free_port()
    database = Path(folder) / "ledger.sqlite"
    database.unlink(missing_ok=True)
    command = [binary, "serve", arguments.file, "--listen", f"127.0.0.1:{port}", "--db", database]
    command += ["--threads", arguments.threads, "--max-running", arguments.clients, *more]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("key"):
            return Server(process, port, arguments.file.stem, line.split()[1])
    raise SystemExit("wels serve ended without a key")


@asynccontextmanager
async def request(server: Server, method: str, path: str, body: bytes = b"") -> AsyncIterator[tuple[int, StreamReader]]:
    """The answer's status and the rest of it, of a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Type: application/json\r\nAuthorization: Bearer {server.key}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        yield int((await reader.readline()).split()[1]), reader
    finally:
        writer.close()


async def until_healthy(server: Server) -> None:
    for _ in range(600):
        try:
            async with request(server, "GET", "/health") as (status, _):
                if status == 200:
                    return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("the server does not get ready")


async def answer(server: Server, prompt: str, tokens: int) -> tuple[float, int]:
    """Seconds to the first piece of text, and the tokens of the answer."""
    body = {"model": server.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "logit_bias": ENDS}
    begin = time.perf_counter()
    first, counted = 0.0, 0
    async with request(server, "POST", "/v1/completions", json.dumps(body).encode()) as (status, reader):
        if status != 200:
            raise SystemExit(f"status {status}: {(await reader.read()).decode()}")
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first and any(choice.get("text") for choice in chunk.get("choices", [])):
                first = time.perf_counter() - begin
            if chunk.get("usage"):
                counted = chunk["usage"]["completion_tokens"]
    return first, counted


async def load(
    server: Server, arguments: argparse.Namespace, seed: int, models: Sequence[str] = ()
) -> tuple[float, list[float]]:
    """Tokens a second over all clients, and each request's seconds to its first token. Of several models requests are
    for one after the other."""
    await until_healthy(server)
    asked = [replace(server, model=model) for model in models] or [server]
    generator = random.Random(seed)
    # A common word is one token.
    prompts = [" ".join(generator.choices(WORDS, k=arguments.prompt - 1)) for _ in range(arguments.requests)]
    for of in asked:
        await answer(of, "Once upon a time", 8)
    firsts: list[float] = []
    total = 0
    left = zip(itertools.cycle(asked), prompts)

    async def client() -> None:
        nonlocal total
        for of, prompt in left:
            first, counted = await answer(of, prompt, arguments.tokens)
            firsts.append(first)
            total += counted

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(arguments.clients)))
    seconds = time.perf_counter() - begin
    expected = arguments.requests * arguments.tokens
    if total != expected:
        print(f"{total} tokens instead of {expected}", file=sys.stderr)
    return total / seconds, firsts


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--slots", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()
    print(wels.machine())
    results: dict[str, list[tuple[float, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        for seed in range(arguments.rounds):
            starts = [(f"llama-server -np {n}", lambda n=n: start_llama(arguments, n, log)) for n in arguments.slots]
            starts.append(("Wels", lambda: start_wels(arguments, binary, folder, log)))
            for name, start in starts:
                server = start()
                try:
                    results.setdefault(name, []).append(asyncio.run(load(server, arguments, seed)))
                finally:
                    server.stop()
    print(f"\n{arguments.clients} clients, {arguments.requests} requests of {arguments.prompt} tokens, answers of")
    print(f"{arguments.tokens}; {arguments.rounds} rounds\n")
    print("| server | tokens/s | first token, median | 99th percentile |")
    print("|---|---|---|---|")
    for name, rounds in results.items():
        rate = statistics.median(rate for rate, _ in rounds)
        half, most = (statistics.median(percentile(firsts, share) for _, firsts in rounds) for share in (0.5, 0.99))
        print(f"| {name} | {rate:.0f} | {half:.2f} s | {most:.2f} s |")


if __name__ == "__main__":
    main()
