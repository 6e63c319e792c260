"""Ten times the load that a server can answer, for two minutes.

    python overload.py MODEL [--wels ../../target/release/wels] [--seconds 120] [--times 10]

Starts `wels serve MODEL`, measures how many requests a second it finishes when it is full, then sends ten times as many
whether or not earlier ones are done, and waits for the last answer. Checks that

* the server's memory grows by no more than 10% over what it was when it was full,
* each request is finished, or refused with 429 or 503 and a Retry-After within a second,
* none is lost: no connection is dropped, no answer ends without its usage,
* none is billed twice: `wels usage` has the requests that were finished, with the tokens that clients were told, and
  apart from them those that were refused.

The cache of keys and values is small enough to be full before the load begins: prompts that differ fill one of any
size.

Python's standard library alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WARM_SECONDS = 15.0
WORDS = "the a river fish net boat line of and under over bright old quick seven nine stone bridge".split()


@dataclass
class Outcome:
    """How a request ended."""

    status: int
    seconds: float
    retry_after: str | None = None
    first_byte_s: float = 0.0
    usage: dict | None = None
    error: str | None = None


@dataclass
class Client:
    host: str
    port: int
    key: str
    tokens: int
    random: random.Random

    async def ask(self) -> Outcome:
        """One streamed answer over a connection of its own."""
        begin = time.monotonic()
        prompt = " ".join(self.random.choice(WORDS) for _ in range(40))
        body = {"model": "it", "prompt": prompt, "max_tokens": self.tokens, "temperature": 1, "stream": True,
                "stream_options": {"include_usage": True}}
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        status = 0
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            writer.write(head.encode() + data)
            await writer.drain()
            status = int((await reader.readline()).split()[1])
            first = time.monotonic() - begin
            headers = {}
            while (line := (await reader.readline()).strip()):
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            rest = (await reader.read()).decode()
            writer.close()
        except (OSError, IndexError, ValueError) as error:
            return Outcome(status, time.monotonic() - begin, error=repr(error))
        found = re.findall(r'"usage":(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})', rest)
        usage = json.loads(found[-1]) if found and "[DONE]" in rest else None
        return Outcome(status, time.monotonic() - begin, headers.get("retry-after"), first, usage)


def rss_bytes(pid: int) -> int:
    """Memory of its own; pages of mapped files, which the system takes back as it likes, are not counted."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


async def full(client: Client, at_once: int, seconds: float) -> list[Outcome]:
    """As many requests at a time as the server runs, each followed by the next."""
    end, outcomes = time.monotonic() + seconds, []

    async def one_after_the_other() -> None:
        while time.monotonic() < end:
            outcomes.append(await client.ask())

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    return outcomes


async def flood(client: Client, rate: float, seconds: float, watch) -> list[Outcome]:
    """Requests at a rate, whatever becomes of them."""
    begin, tasks = time.monotonic(), []
    while (now := time.monotonic() - begin) < seconds:
        while len(tasks) < now * rate:
            tasks.append(asyncio.create_task(client.ask()))
        watch()
        await asyncio.sleep(0.05)
    while not all(task.done() for task in tasks):
        watch()
        await asyncio.sleep(0.2)
    return [task.result() for task in tasks]


async def measure(
    arguments: argparse.Namespace, server: subprocess.Popen, client: Client
) -> tuple[list[Outcome], bool]:
    begin = time.monotonic()
    warm = await full(client, arguments.at_once, WARM_SECONDS)
    warm += await full(client, arguments.at_once + arguments.waiting, 1.0)
    capacity = len([outcome for outcome in warm if outcome.status == 200]) / (time.monotonic() - begin)
    before = rss_bytes(server.pid)
    rate = arguments.times * capacity
    now = f"now {rate:.0f} requests/s for {arguments.seconds:.0f} s"
    print(f"full: {capacity:.1f} requests/s, {before / 1e6:.0f} MB; {now}", flush=True)
    most = before

    def watch() -> None:
        nonlocal most
        most = max(most, rss_bytes(server.pid))

    outcomes = await flood(client, rate, arguments.seconds, watch)
    finished = [outcome for outcome in outcomes if outcome.status == 200 and outcome.usage]
    refused = [outcome for outcome in outcomes if outcome.status in (429, 503)]
    late = [outcome for outcome in refused if outcome.seconds > 1.0 or not outcome.retry_after]
    lost = [outcome for outcome in outcomes if outcome not in finished and outcome not in refused]
    print(f"sent {len(outcomes)}: {len(finished)} finished, {len(refused)} refused, {len(lost)} lost")
    if refused:
        times = sorted(outcome.seconds for outcome in refused)
        print(f"refusals took {times[len(times) // 2]:.3f} s in the median, {times[int(0.99 * len(times))]:.3f} s p99, "
              f"{times[-1]:.3f} s at most; {len(late)} late or without Retry-After")
    if finished:
        times = sorted(outcome.first_byte_s for outcome in finished)
        print(f"answers began after {times[len(times) // 2]:.3f} s in the median, {times[-1]:.3f} s at most")
    if lost:
        print("lost:", Counter((outcome.status, outcome.error) for outcome in lost).most_common(5))
    print(f"memory at most {most / 1e6:.0f} MB: {most / before - 1:+.1%}")
    passed = not late and not lost and most <= 1.1 * before
    return warm + outcomes, passed


def billed(arguments: argparse.Namespace, ledger: Path) -> dict:
    command = [arguments.wels, "usage", "--json", "--db", ledger]
    printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return json.loads(printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--wels", type=Path, default=ROOT / "target/release/wels")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--waiting", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.db"
        command = [arguments.wels, "serve", arguments.model, "--name", "it", "--listen", "127.0.0.1:0", "--db", ledger]
        command += ["--max-running", arguments.at_once, "--max-waiting", arguments.waiting, "--context", 2048]
        command += ["--cache-mib", 128]
        server = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        try:
            host, port = re.search(r"http://([^:/]+):(\d+)", server.stdout.readline()).groups()
            key = re.search(r"key\s+(\S+)", server.stdout.readline())[1]
            client = Client(host, int(port), key, arguments.tokens, random.Random(1))
            outcomes, passed = asyncio.run(measure(arguments, server, client))
        finally:
            server.terminate()
            server.wait()
        told = [outcome.usage for outcome in outcomes if outcome.usage]
        sums = {name: sum(usage[name] for usage in told) for name in ("prompt_tokens", "completion_tokens")}
        bill = billed(arguments, ledger)
        print(f"clients were told of {len(told)} answers, {sums}; the ledger says {bill}")
        in_ledger = bill["hit_tokens"] + bill["miss_tokens"], bill["output_tokens"]
        refused = sum(outcome.status in (429, 503) for outcome in outcomes)
        passed &= (bill["requests"], bill["refused"]) == (len(told), refused) and in_ledger == tuple(sums.values())
    print("passed" if passed else "FAILED")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
