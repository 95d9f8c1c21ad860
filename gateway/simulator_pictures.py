"""The simulator's pictures: small real JPEGs that depend on nothing but what was asked, and spoilt ones.

The same (prompt, seed, index, size) gives the same bytes; another prompt, seed or index gives other colours. The
pixel size is kept modest, so that a load test measures the gateway and not this. Imports nothing of ours.
"""

import asyncio
import functools
import gzip
import hashlib
import io
import textwrap
from collections.abc import AsyncIterator

from PIL import Image, ImageDraw, ImageFont, ImageOps

MAX_TEXT_LENGTH = 240
CACHED_PICTURES = 256
BOMB_BYTES = 100 * 2**20
ENDLESS_BYTES = 512 * 2**20
ZEROS = bytes(2**16)
JPEG_MAGIC = b"\xff\xd8\xff\xe0"
HTML = b"<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1>"
LONG_SIDE = {"0.5K": 512, "1K": 512, "2K": 768, "4K": 1024}


def size(aspect_ratio: str, resolution: str) -> tuple[int, int]:
    """The width and height in pixels for an aspect ratio such as ``16:9``; what is not one (``auto``) is square."""
    long_side = LONG_SIDE.get(resolution, 512)
    across, _, down = aspect_ratio.partition(":")
    if not (across.isdecimal() and down.isdecimal() and int(across) and int(down)):
        return long_side, long_side
    wide, high = int(across), int(down)
    longest = max(wide, high)
    return max(8, long_side * wide // longest), max(8, long_side * high // longest)


@functools.lru_cache(maxsize=CACHED_PICTURES)
def jpeg(prompt: str, seed: int, index: int, pixels: tuple[int, int]) -> bytes:
    """The picture as JPEG bytes."""
    out = io.BytesIO()
    _draw(prompt, seed, index, pixels).save(out, "JPEG", quality=82)
    return out.getvalue()


def spoilt(kind: str, picture: bytes) -> tuple[bytes, str]:
    """What a broken file host sends instead of a picture, and the media type that it claims."""
    match kind:
        case "html":
            return HTML, "text/html"
        case "html_as_jpeg":
            return HTML, "image/jpeg"
        case "empty":
            return b"", "image/jpeg"
        case "cut":
            return picture[: len(picture) * 3 // 4], "image/jpeg"
        case "wrong_type":
            return picture, "text/plain"
        case "png":
            return _as_png(picture), "image/png"
        case _:
            raise ValueError(f"no such spoilt picture: {kind}")


@functools.cache
def gzip_bomb() -> bytes:
    """A gzip body of about 100 kB that begins like a JPEG and unpacks to BOMB_BYTES and four more."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as bomb:
        bomb.write(JPEG_MAGIC)
        for _ in range(BOMB_BYTES // len(ZEROS)):
            bomb.write(ZEROS)
    return out.getvalue()


async def endless() -> AsyncIterator[bytes]:
    """A body that begins like a JPEG and goes on for ENDLESS_BYTES, or until the client leaves."""
    yield JPEG_MAGIC
    for _ in range(ENDLESS_BYTES // len(ZEROS)):
        yield ZEROS
        await asyncio.sleep(0)


def _as_png(picture: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(out, "PNG")
    return out.getvalue()


def _draw(prompt: str, seed: int, index: int, pixels: tuple[int, int]) -> Image.Image:
    digest = hashlib.sha256(f"{seed}/{index}/{prompt}".encode("utf-8", "replace")).digest()
    gradient = Image.linear_gradient("L").rotate(digest[6] % 4 * 90).resize(pixels)
    picture = ImageOps.colorize(gradient, black=_colour(digest[0:3]), white=_colour(digest[3:6]))
    pen = ImageDraw.Draw(picture)
    short_side = min(pixels)
    for circle in range(4):
        x, y, radius, grey = digest[8 + circle * 4 : 12 + circle * 4]
        centre = x * pixels[0] // 255, y * pixels[1] // 255
        pen.circle(centre, short_side * (20 + radius // 4) // 400, outline=(grey, grey, grey), width=2)
    text_size = max(10, short_side // 16)
    pen.multiline_text(
        (short_side // 16, short_side // 16),
        _lines(prompt, max(8, pixels[0] * 7 // 4 // text_size)),
        fill=(255, 255, 255),
        font=ImageFont.load_default(text_size),
        stroke_width=1,
        stroke_fill=(0, 0, 0),
    )
    return picture


def _colour(three: bytes) -> tuple[int, int, int]:
    red, green, blue = three
    return red, green, blue


def _lines(prompt: str, width: int) -> str:
    drawable = "".join(char if _has_glyph(char) else "?" for char in prompt[:MAX_TEXT_LENGTH])
    return "\n".join(textwrap.wrap(drawable, width))


def _has_glyph(char: str) -> bool:
    """Pillow's own font knows Latin letters only; its box for the rest is wider than the text it stands for."""
    return char.isprintable() and ord(char) < 0x180
