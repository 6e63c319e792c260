"""A model served over 1, 2, 4 … ranks of `mpirun` on this machine: answers, bills, and memory of each rank.

    cargo build --release --features mpi
    python3 scripts/mpi/serve.py MODEL [--ranks 1,2,4] [--requests 8] [--tokens 32] [--quant q4]

Each server gets the same requests, four at a time, of a fresh ledger. Their replies (but for names and times), and what
the ledger has of them, are compared with those of the first number of ranks. Of each rank it prints the memory that it
has resident (the kernel's VmRSS: packed weights, cache, results, what it has read of mapped weights, and the program
itself) and how much of that is its own (RssAnon), beside the plan's (`wels plan MODEL --ranks N`), and the tokens a
second of all requests. Ends with code 1 if a reply or a bill differs. Python's standard library and Open MPI alone.
"""

import argparse
import concurrent.futures
import json
import os
import random
import re
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRICES = 'peak = { hit = "1", miss = "2", output = "3" }\n'
CACHE_MIB = 64


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_bytes(pid):
    """All of it, and what is its own."""
    status = Path(f"/proc/{pid}/status").read_text()
    return [int(re.search(rf"{of}:\s+(\d+) kB", status)[1]) * 1024 for of in ("VmRSS", "RssAnon")]


def ranks_of(launcher):
    """Process ids of the ranks that `mpirun` has started, by rank."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            parent = int(re.search(r"PPid:\s+(\d+)", (process / "status").read_text())[1])
            if parent == launcher:
                variables = (process / "environ").read_bytes().split(b"\0")
                rank = next(v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK="))
                found[int(rank.split(b"=")[1])] = int(process.name)
        except (OSError, StopIteration, TypeError):
            continue
    return [found[rank] for rank in sorted(found)]


def prompt(number):
    """Words of all kinds, so that all experts are asked."""
    letters = random.Random(number)
    return " ".join("".join(letters.choices(string.ascii_letters, k=letters.randint(1, 8))) for _ in range(100))


def ask(address, number, tokens):
    body = {
        "model": "model",
        "prompt": prompt(number),
        "max_tokens": tokens,
        "temperature": 0.8,
        "seed": number,
        "logprobs": 1,
    }
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{address}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as reply:
        answer = json.load(reply)
    return {"choices": answer["choices"], "usage": answer["usage"]}


def serve(args, ranks, folder):
    wels, ledger, address = args.wels, Path(folder, f"{ranks}.db"), f"127.0.0.1:{free_port()}"
    prices = Path(folder, "prices.toml")
    prices.write_text(PRICES)
    model = [wels, "serve", f"model={args.model}", "--no-key", "--listen", address, "--db", str(ledger)]
    options = ["--prices", str(prices), "--cache-mib", str(CACHE_MIB), "--quant", args.quant, "--log", "error"]
    options += ["--threads", str(max(1, (os.cpu_count() or 1) // ranks))]
    launch = "mpirun -q --allow-run-as-root --oversubscribe --bind-to none --enable-recovery --mca mpi_yield_when_idle 1"
    command = [*launch.split(), "-np", str(ranks), *model, *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as launcher:
        try:
            begin = time.monotonic()
            while True:
                try:
                    urllib.request.urlopen(f"http://{address}/health", timeout=5).close()
                    break
                except OSError:
                    if launcher.poll() is not None:
                        sys.exit(f"the server over {ranks} ranks ended with code {launcher.returncode}")
                    time.sleep(0.1)
            loaded = time.monotonic() - begin
            begin = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda number: ask(address, number, args.tokens), range(args.requests)))
            seconds = time.monotonic() - begin
            pids = ranks_of(launcher.pid)
            memory = [resident_bytes(pid) for pid in pids]
            os.kill(pids[0], signal.SIGTERM)
            launcher.wait(60)
        finally:
            launcher.kill()
    usage = subprocess.run([wels, "usage", "--json", "--db", ledger], check=True, capture_output=True, text=True)
    rate = sum(answer["usage"]["completion_tokens"] for answer in answers) / seconds
    return answers, usage.stdout, memory, rate, loaded


def plan(args, ranks):
    command = [args.wels, "plan", args.model, "--ranks", str(ranks), "--quant", args.quant, "--json"]
    command += ["--cache-mib", str(CACHE_MIB)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["ranks"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--quant", default="stored")
    parser.add_argument("--wels", default=str(ROOT / "target/release/wels"))
    args = parser.parse_args()
    first, differs = None, False
    print("| ranks | replies, bills | loaded in s | tokens/s | rank | resident, MB | its own, MB | of one rank's | planned, MB | off |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in map(int, args.ranks.split(",")):
            answers, bill, memory, rate, loaded = serve(args, ranks, folder)
            first = first or (answers, bill, memory[0][0])
            equal = (answers == first[0], bill == first[1])
            differs |= not all(equal)
            words = ", ".join("equal" if same else "DIFFER" for same in equal)
            planned = plan(args, ranks)
            for rank, (resident, own) in enumerate(memory):
                expected = planned["the_first"] if rank == 0 else planned["a_rank"]
                start = f"| {ranks} | {words} | {loaded:.1f} | {rate:.1f}" if rank == 0 else "| | | |"
                share = f"{resident / first[2]:.3f} | {expected / 1e6:.1f} | {resident / expected - 1:+.0%}"
                numbers = f"{resident / 1e6:.1f} | {own / 1e6:.1f} | {share}"
                print(f"{start} | {rank} | {numbers} |", flush=True)
    sys.exit(differs)


if __name__ == "__main__":
    main()
