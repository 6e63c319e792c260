"""Draws what a program wrote to a terminal, as an SVG of text: the pictures of `wels run` and `wels chat`.

    pip install pyte==0.8.2
    python scripts/pictures/terminal.py docs/chat.svg --type "A question" --type "/quit" -- wels chat MODEL

The program runs in a pseudo-terminal of 100 columns; `--type` gives lines that are typed, each once the program has
been silent for two seconds. The picture holds the last lines of the screen, colours included.
"""

from __future__ import annotations

import argparse
import fcntl
import html
import os
import pty
import select
import struct
import termios
from pathlib import Path

import pyte

COLUMNS, LINES = 100, 200
CHAR, LINE, MARGIN = 8.4, 19, 14  # pixels of a character, of a line, around all
PAPER, INK = "#16191d", "#d7dae0"
COLOURS = {
    "black": "#5c6370", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef",
    "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d7dae0", "brightblack": "#7f848e", "brightred": "#e06c75",
    "brightgreen": "#98c379", "brightyellow": "#e5c07b", "brightbrown": "#e5c07b", "brightblue": "#61afef",
    "brightmagenta": "#c678dd", "brightcyan": "#56b6c2", "brightwhite": "#ffffff",
}  # fmt: skip
SILENCE_S = 2.0


def record(command: list[str], lines: list[str], silence: float) -> pyte.Screen:
    """Runs the command until it ends, and types the lines meanwhile."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    screen.write_process_input = lambda text: os.write(terminal, text.encode())  # where the cursor is, if asked
    waiting = list(lines)
    while True:
        ready, _, _ = select.select([terminal], [], [], silence if waiting else 600)
        if ready:
            try:
                stream.feed(os.read(terminal, 65536))
            except OSError:  # Linux's word for the end of a pseudo-terminal
                break
        elif waiting:
            os.write(terminal, (waiting.pop(0) + "\r").encode())
        else:
            raise SystemExit("the program is silent and does not end")
    os.waitpid(child, 0)
    return screen


def colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return COLOURS.get(name, f"#{name}")


def runs(row: dict[int, pyte.screens.Char]) -> list[tuple[int, str, pyte.screens.Char]]:
    """Pieces of a line that look alike, without the blanks at their ends, with their columns."""
    pieces: list[tuple[int, str, pyte.screens.Char]] = []
    for column in range(COLUMNS):
        char = row[column]
        if pieces and char._replace(data="") == pieces[-1][2]:
            begin, text, look = pieces[-1]
            pieces[-1] = (begin, text + char.data, look)
        else:
            pieces.append((column, char.data, char._replace(data="")))
    blanks = [len(text) - len(text.lstrip()) for _, text, _ in pieces]
    moved = [(begin + blank, text.strip(), look) for (begin, text, look), blank in zip(pieces, blanks)]
    return [piece for piece in moved if piece[1]]


def draw(screen: pyte.Screen, last: int, title: str) -> str:
    """The last lines that are not empty."""
    filled = [number for number, text in enumerate(screen.display) if text.strip()]
    shown = range(max(filled[0], filled[-1] + 1 - last), filled[-1] + 1)
    width, height = round(COLUMNS * CHAR + 2 * MARGIN), len(shown) * LINE + 2 * MARGIN
    font = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        f'<g font-family="{font}" font-size="14" fill="{INK}" xml:space="preserve">',
    ]
    for at, number in enumerate(shown):
        y = MARGIN + at * LINE + 14
        for column, text, look in runs(screen.buffer[number]):
            style = ' font-weight="bold"' if look.bold else ""
            style += f' fill="{colour(look.fg, INK)}"' if look.fg != "default" else ""
            text_width = f'textLength="{len(text) * CHAR:.1f}"'
            parts.append(f'<text x="{MARGIN + column * CHAR:.1f}" y="{y}" {text_width}{style}>{html.escape(text)}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--type", action="append", default=[], metavar="LINE", help="a line to type")
    parser.add_argument("--last", type=int, default=40, help="lines of the picture at most")
    parser.add_argument("--silence", type=float, default=SILENCE_S, help="seconds without output before a line is typed")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    screen = record(arguments.command, arguments.type, arguments.silence)
    arguments.picture.write_text(draw(screen, arguments.last, " ".join(arguments.command)), encoding="utf-8")


if __name__ == "__main__":
    main()
