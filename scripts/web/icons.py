"""Draws the icons of the web chat: its fish on paper, as the sizes that phones want.

    pip install cairosvg==2.9.1 && python scripts/web/icons.py
"""

from __future__ import annotations

import re
from pathlib import Path

import cairosvg

WEB = Path(__file__).resolve().parents[2] / "crates/server/src/web"


def drawn(fish: str, side: float, radius: float) -> bytes:
    """`side`: the part of the icon's width that the fish takes; a mask may cut away all but the middle 80 %."""
    scale = side
    at = 16 * (1 - scale)
    paper = f'<rect width="32" height="32" rx="{radius}" fill="#fbfaf7"/>'
    moved = f'<g transform="translate({at} {at - 2 * scale}) scale({scale})">{fish}</g>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{paper}{moved}</svg>'.encode()


def main() -> None:
    fish = re.search(r"<g .*</g>", (WEB / "icon.svg").read_text())[0]
    for name, size, side, radius in [
        ("icon-192", 192, 0.8, 6),
        ("icon-512", 512, 0.8, 6),
        ("icon-maskable-512", 512, 0.6, 0),
    ]:
        picture = drawn(fish, side, radius)
        cairosvg.svg2png(picture, write_to=str(WEB / f"{name}.png"), output_width=size, output_height=size)


if __name__ == "__main__":
    main()
