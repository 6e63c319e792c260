"""Runs a program in a terminal: in_terminal.py SECONDS [PATTERN KEYS]... -- PROGRAM ARGUMENT...

When what was shown since the last keys matches a pattern, its keys are typed. Everything that was shown goes to stdout,
with `<<keys N>>` where the keys number N were typed. It ends when the program does."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time


def main():
    split = sys.argv.index("--")
    deadline = time.time() + float(sys.argv[1])
    script, program = sys.argv[2:split], sys.argv[split + 1 :]
    steps = [(script[at].encode(), script[at + 1].encode().decode("unicode_escape").encode()) for at in range(0, len(script), 2)]
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(program[0], program)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    shown, since, step = b"", 0, 0
    while time.time() < deadline:
        ready, _, _ = select.select([terminal], [], [], 0.02)
        if ready:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # the program has ended
                piece = b""
            if not piece:
                break
            shown += piece
            if b"\x1b[6n" in piece:  # where is the cursor?
                os.write(terminal, b"\x1b[1;1R")
        if step < len(steps) and re.search(steps[step][0], shown[since:], re.S):
            time.sleep(0.2 if steps[step][0].endswith(b"$") else 0)
            os.write(terminal, steps[step][1])
            shown += b"<<keys %d>>" % step
            since, step = len(shown), step + 1
    else:
        os.kill(child, 9)
        shown += b"<<late>>"
    sys.stdout.buffer.write(shown)


main()
