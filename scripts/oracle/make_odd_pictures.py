"""Writes pictures in the odd forms that clients send, for the tests of the server: the same four quarters in each.

    pip install pillow==13.0.0
    python make_odd_pictures.py ../../crates/server/tests/data/pictures

A picture is 32 x 24: red, green, blue and white quarters, row by row. `turned.jpg` is stored so that its EXIF turns it
to that; it also says where it was taken.
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

from PIL import Image, ImageDraw, TiffImagePlugin

SIZE = (32, 24)
QUARTERS = [(0, 0, "red"), (16, 0, "lime"), (0, 12, "blue"), (16, 12, "white")]


def quarters() -> Image.Image:
    """The picture."""
    picture = Image.new("RGB", SIZE)
    draw = ImageDraw.Draw(picture)
    for x, y, colour in QUARTERS:
        draw.rectangle((x, y, x + 15, y + 11), fill=colour)
    return picture


def sixteen_bits(picture: Image.Image) -> bytes:
    """A PNG of 16 bits a colour, which Pillow does not write: each byte twice."""
    width, height = picture.size
    raw = picture.tobytes()
    lines = [raw[y * width * 3 : (y + 1) * width * 3] for y in range(height)]
    rows = [b"\0" + bytes(half for byte in line for half in (byte, byte)) for line in lines]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = zlib.compress(b"".join(rows), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def main(folder: Path) -> None:
    """Writes all files."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = quarters()
    picture.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    picture.save(folder / "progressive.jpg", quality=95, progressive=True)
    (folder / "sixteen.png").write_bytes(sixteen_bits(picture))
    picture.quantize(8).save(folder / "palette.png")
    picture.convert("RGBA").save(folder / "lossless.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it
    exif.get_ifd(0x8825)[2] = tuple(TiffImagePlugin.IFDRational(part) for part in (48, 8, 0))
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=exif)
    frames = [picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for name in ("animated.png", "animated.webp", "animated.gif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
