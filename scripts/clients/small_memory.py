"""A model that is larger than the memory it may take: does it answer, and how soon?

    python small_memory.py FILE.gguf [--gigabytes 4] [--tokens 16] [--wels ../../target/release/wels]

Drops the file from the system's cache, starts `wels chat FILE.gguf` in a control group (v1 or v2) that may take so much
memory, cache of files included, and asks one question. Prints the seconds to the first token and to the last, and
the most that the group has taken. Needs the right to make control groups, as root has.

Python's standard library alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Group:
    """A control group with a limit of memory."""

    def __init__(self, limit: int) -> None:
        old = Path("/sys/fs/cgroup/memory")
        self.old = old.is_dir()
        self.path = (old if self.old else Path("/sys/fs/cgroup")) / f"wels-{os.getpid()}"
        self.path.mkdir()
        (self.path / ("memory.limit_in_bytes" if self.old else "memory.max")).write_text(str(limit))

    def enter(self) -> None:
        """Puts the calling process into the group."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        return int((self.path / ("memory.max_usage_in_bytes" if self.old else "memory.peak")).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--wels", type=Path, default=ROOT / "target" / "release" / "wels")
    arguments = parser.parse_args()
    size, limit = arguments.file.stat().st_size, int(arguments.gigabytes * 1e9)
    if size <= limit:
        sys.exit(f"the file has {size / 1e9:.2f} GB and fits the limit of {arguments.gigabytes} GB: choose a smaller one")
    with arguments.file.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    group, chat = Group(limit), None
    try:
        begin = time.monotonic()
        chat = subprocess.Popen(
            [arguments.wels, "chat", arguments.file, "--max-tokens", str(arguments.tokens)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=group.enter,
        )
        assert chat.stdin and chat.stdout
        chat.stdin.write(b"Why is the sky blue?\n")
        chat.stdin.close()
        first = chat.stdout.read(1)
        to_first = time.monotonic() - begin
        rest = chat.stdout.read()
        behind = time.monotonic() - begin - to_first
        if chat.wait() != 0 or not first:
            sys.exit(f"wels chat failed with {chat.returncode}")
        print(f"{size / 1e9:.2f} GB in {arguments.gigabytes} GB: first token after {to_first:.1f} s, all {arguments.tokens} "
              f"after {to_first + behind:.1f} s; the group took {group.peak() / 1e9:.2f} GB at most; {len(rest) + 1} bytes")
    finally:
        if chat:
            chat.kill()
            chat.wait()
        group.path.rmdir()


if __name__ == "__main__":
    main()
