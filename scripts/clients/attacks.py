"""What a hostile client can do to the others: each known attack, and what another client, memory and bill see of it.

    python attacks.py MODEL [--wels ../../target/release/wels] [--only WORD]

Starts `wels serve MODEL` for each attack. A key of an attacker and one of an innocent client are made; the innocent
one asks for a token or two, one request after the other, before, during and after the attack. Prints a table:

* the longest that the innocent client waited beyond its longest wait before the attack; at most 2 s are allowed,
* by how much the server's own memory grew over what it was before; at most 256 MiB,
* whether the ledger has, for each of the two keys, what they were told: each answer once, with its tokens. Of an
  attacker that reads nothing only the innocent key is compared.

Python's standard library alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from overload import ROOT, rss_bytes

WAIT_MAX_S = 2.0
GROWTH_MAX_BYTES = 256 << 20
# As long as an innocent client is asked to be patient, whatever the bar.
GIVEN_UP_S = 120.0


@dataclass
class Answer:
    status: int
    seconds: float
    usage: dict | None


@dataclass
class Key:
    """A key, and what those who hold it were told."""

    name: str
    secret: str
    told: list[Answer] = field(default_factory=list)


@dataclass
class Server:
    process: subprocess.Popen
    host: str
    port: int
    ledger: Path
    wels: Path

    def add(self, name: str, *limits: str) -> Key:
        return Key(name, printed(self.wels, "keys", "add", name, *limits, "--db", self.ledger).split()[-1])

    def billed(self) -> dict[str, tuple[int, int, int]]:
        """Requests, tokens of prompts and of answers, by key."""
        lines = printed(self.wels, "usage", "--by", "key", "--json", "--db", self.ledger).splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["group"]: (row["requests"], row["hit_tokens"] + row["miss_tokens"], row["output_tokens"])
                for row in rows}

    async def post(self, key: Key, path: str, body: dict | bytes) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        begin = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            writer.write(head(key, path, len(data)) + data)
            await writer.drain()
            text = (await asyncio.wait_for(reader.read(), GIVEN_UP_S)).decode()
            writer.close()
            status = int(text.split()[1])
            usage = json.loads(text.partition("\r\n\r\n")[2]).get("usage") if status == 200 else None
        except (OSError, IndexError, ValueError, TimeoutError):
            status, usage = 0, None
        answer = Answer(status, time.monotonic() - begin, usage)
        key.told.append(answer)
        return answer

    def socket(self, text: bytes) -> socket.socket:
        """A connection on which something was sent, and nothing is read."""
        connection = socket.create_connection((self.host, self.port))
        connection.settimeout(0.2)
        with contextlib.suppress(OSError):
            connection.sendall(text)
        return connection


def printed(wels: Path, *arguments: object) -> str:
    command = [str(part) for part in (wels, *arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def head(key: Key, path: str, length: int) -> bytes:
    return (f"POST {path} HTTP/1.1\r\nHost: it\r\nAuthorization: Bearer {key.secret}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n").encode()


def chat(content: str, **more: object) -> dict:
    return {"model": "it", "messages": [{"role": "user", "content": content}], "max_tokens": 2, **more}


Attack = Callable[[Server], Awaitable[list[Key]]]


async def long_prompts(server: Server) -> list[Key]:
    """Eight prompts of 4.1 MB from a key that may have 100 tokens a minute."""
    key = server.add("attacker", "--tokens-per-minute", "100")
    body = {"model": "it", "prompt": "fish " * 820_000, "max_tokens": 1}
    await asyncio.gather(*(server.post(key, "/v1/completions", body) for _ in range(8)))
    return [key]


async def long_prompts_without_limit(server: Server) -> list[Key]:
    """The same from a key without limits, which are longer than any context."""
    key = server.add("attacker")
    body = {"model": "it", "prompt": "fish " * 820_000, "max_tokens": 1}
    await asyncio.gather(*(server.post(key, "/v1/completions", body) for _ in range(8)))
    return [key]


async def slow_bodies(server: Server) -> list[Key]:
    """Ninety-six bodies that do not arrive, of one key that may ask once a minute."""
    key = server.add("attacker", "--requests-per-minute", "1")
    held = [server.socket(head(key, "/v1/chat/completions", 100) + b"{") for _ in range(96)]
    await asyncio.sleep(20)
    for connection in held:
        connection.close()
    return [key]


async def deaf_readers(server: Server) -> list[Key]:
    """Forty connections without a key that ask for the page's script 4000 times and never read."""
    key = Key("nobody", "")
    text = b"GET /chat.js HTTP/1.1\r\nHost: it\r\n\r\n" * 4000
    held = [await asyncio.to_thread(server.socket, text) for _ in range(40)]
    await asyncio.sleep(20)
    for connection in held:
        connection.close()
    return [key]


async def schemas(server: Server) -> list[Key]:
    """Twelve schemas of 6000 properties at once, half of them from clients that leave after a second."""
    key = server.add("attacker")

    def body(letter: str) -> bytes:
        properties = {f"{letter}{n}": {"type": "string"} for n in range(6000)}
        schema = {"type": "object", "properties": properties, "additionalProperties": False,
                  "required": list(properties)}
        form = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}
        return json.dumps(chat("a", response_format=form), separators=(",", ":")).encode()

    bodies = [body(letter) for letter in "abcdefghijkl"]
    leaving = [server.socket(head(key, "/v1/chat/completions", len(data)) + data) for data in bodies[:6]]
    staying = [asyncio.create_task(server.post(key, "/v1/chat/completions", data)) for data in bodies[6:]]
    await asyncio.sleep(1)
    for connection in leaving:
        connection.close()
    await asyncio.gather(*staying)
    return [key]


async def many_answers(server: Server) -> list[Key]:
    """Sixteen prompts with sixteen answers each, from a key that may have one answer under way."""
    key = server.add("attacker", "--concurrent", "1")
    body = {"model": "it", "prompt": ["fish"] * 16, "n": 16, "max_tokens": 200}
    await asyncio.gather(*(server.post(key, "/v1/completions", body) for _ in range(16)))
    return [key]


async def many_connections(server: Server) -> list[Key]:
    """Two hundred connections that send the first line of a request, and no more, until they are ended."""
    key = Key("nobody", "")
    held = [server.socket(b"POST /v1/chat/completions HTTP/1.1\r\nHost:") for _ in range(200)]
    await asyncio.sleep(15)
    for connection in held:
        connection.close()
    return [key]


async def unlimited_answers(server: Server) -> list[Key]:
    """Eight requests for sixteen streams each, of which nothing is read, from a key without limits."""
    key = server.add("attacker")
    data = json.dumps(chat("a", n=16, stream=True, max_tokens=512, logprobs=True, top_logprobs=20)).encode()
    held = [server.socket(head(key, "/v1/chat/completions", len(data)) + data) for _ in range(8)]
    await asyncio.sleep(20)
    for connection in held:
        connection.close()
    return []


async def deep_json(server: Server) -> list[Key]:
    """Bodies of 4 MB of opening brackets, and a schema 5000 deep."""
    key = server.add("attacker")
    deep = json.dumps(chat("a", tools="?")).replace('"?"', "[" * 4_000_000)
    await asyncio.gather(*(server.post(key, "/v1/chat/completions", deep.encode()) for _ in range(8)))
    schema = '{"type":"array","items":' * 5000 + "{}" + "}" * 5000
    form = json.dumps(chat("a", response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": "?"}}))
    await server.post(key, "/v1/chat/completions", form.replace('"?"', schema).encode())
    return [key]


async def deaf_answers(server: Server) -> list[Key]:
    """Eight streams of which nothing is read, from a key that may have four answers under way."""
    key = server.add("attacker", "--concurrent", "4")
    data = json.dumps(chat("a", stream=True, max_tokens=512, logprobs=True, top_logprobs=20)).encode()
    held = [server.socket(head(key, "/v1/chat/completions", len(data)) + data) for _ in range(8)]
    await asyncio.sleep(20)
    for connection in held:
        connection.close()
    return []


ATTACKS: list[Attack] = [long_prompts, long_prompts_without_limit, slow_bodies, deaf_readers, many_connections, schemas,
                         many_answers, deaf_answers, deep_json, unlimited_answers]


@dataclass
class Finding:
    wait_s: float
    growth: int
    wrong: list[str]
    told: str

    def passed(self) -> bool:
        return self.wait_s <= WAIT_MAX_S and self.growth <= GROWTH_MAX_BYTES and not self.wrong


def differences(server: Server, keys: list[Key]) -> list[str]:
    """Where the ledger has something else than what was told."""
    bills, wrong = server.billed(), []
    for key in keys:
        answers = [answer.usage for answer in key.told if answer.status == 200]
        told = len(answers), sum(it["prompt_tokens"] for it in answers), sum(it["completion_tokens"] for it in answers)
        if (bill := bills.get(key.name, (0, 0, 0))) != told:
            wrong.append(f"{key.name} was told {told} and billed {bill}")
    return wrong


async def held_against(server: Server, attack: Attack) -> Finding:
    innocent = server.add("innocent")
    ask = lambda: server.post(innocent, "/v1/chat/completions", chat("a fish"))  # noqa: E731
    usual = max([await ask() for _ in range(10)][1:], key=lambda answer: answer.seconds).seconds
    before = most = rss_bytes(server.process.pid)
    task, during = asyncio.create_task(attack(server)), []

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, rss_bytes(server.process.pid))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    while not task.done():
        during.append(await ask())
        await asyncio.sleep(0.05)
    during += [await ask() for _ in range(5)]
    watching.cancel()
    failed = [answer.status for answer in during if answer.status != 200]
    await asyncio.sleep(1)
    keys = await task
    wrong = differences(server, [innocent, *keys]) + ([f"the innocent was told {failed}"] if failed else [])
    told = Counter(answer.status for key in keys for answer in key.told)
    words = ", ".join(f"{count} × {status}" for status, count in sorted(told.items())) or "nothing"
    return Finding(max(0.0, max(answer.seconds for answer in during) - usual), most - before, wrong, words)


@contextlib.contextmanager
def serving(arguments: argparse.Namespace):
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.db"
        command = [arguments.wels, "serve", arguments.model, "--name", "it", "--listen", "127.0.0.1:0", "--db", ledger,
                   "--context", 2048, "--cache-mib", 128, "--max-connections", 256, "--log", "error"]
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        try:
            host, port = re.search(r"http://([^:/]+):(\d+)", process.stdout.readline()).groups()
            yield Server(process, host, int(port), ledger, arguments.wels)
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--wels", type=Path, default=ROOT / "target/release/wels")
    parser.add_argument("--only", default="", help="attacks whose name has this")
    arguments = parser.parse_args()
    print(f"{'attack':<28} {'others wait':>12} {'memory':>10}  bill    attacker told", flush=True)
    passed = True
    for attack in (attack for attack in ATTACKS if arguments.only in attack.__name__):
        with serving(arguments) as server:
            found = asyncio.run(held_against(server, attack))
        passed &= found.passed()
        bill = "; ".join(found.wrong) or "exact"
        verdict = "" if found.passed() else "  FAILED"
        name = attack.__name__.replace("_", " ")
        print(f"{name:<28} {found.wait_s:>10.2f} s {found.growth / 2**20:>6.0f} MiB  {bill:<6}  {found.told}{verdict}", flush=True)
    print("passed" if passed else "FAILED")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
