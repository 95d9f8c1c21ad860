"""Which kind of picture, film or sound some bytes are, judged by their first and last bytes.

No pixel is ever decoded: a decoder is the larger risk. What a server says about the type is not asked. Text in any
form (HTML, JSON, SVG) is no media here, so nothing that a browser could run is ever published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

HEAD_BYTES: Final = 64
"""How many of the first bytes `begin` and `sniff` want to see (fewer if the file is shorter)."""

TAIL_BYTES: Final = 64
"""How many of the last bytes `sniff` wants to see (fewer if the file is shorter)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaType:
    """One kind of media that the gateway keeps."""

    mime: str
    extension: str
    """Without the dot."""
    sealed: bool
    """Whether the file's own bytes show that its end is there; if not, only the transfer can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """How one media type is recognised: by its head, then by its end."""

    type: MediaType
    begins: Callable[[bytes], bool]
    ends: Callable[[bytes, bytes, int], bool]


def begin(head: bytes) -> MediaType | None:
    """Return the type that the first bytes announce, or None: nothing that may be kept can follow."""
    found = _format(head)
    return None if found is None else found.type


def sniff(head: bytes, tail: bytes, length: int) -> MediaType | None:
    """Return the type of a whole file of `length` bytes, or None if it is no media or lacks its end.

    `head` and `tail` are its first HEAD_BYTES and last TAIL_BYTES; they overlap in a short file.
    """
    found = _format(head)
    return found.type if found is not None and found.ends(head, tail, length) else None


def _format(head: bytes) -> _Format | None:
    return next((known for known in _FORMATS if known.begins(head)), None)


def _magic(*prefixes: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(prefixes)


def _riff(form: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[:4] == b"RIFF" and head[8:12] == form


def _brand(*brands: bytes) -> Callable[[bytes], bool]:
    """ISO 14496-12 §4.3: an `ftyp` box; the major brand decides, for the vague image brands the compatible ones."""

    def begins(head: bytes) -> bool:
        if head[4:8] != b"ftyp":
            return False
        major = head[8:12]
        if major not in _VAGUE_BRANDS:
            return major in brands
        listed = head[16 : int.from_bytes(head[:4])]
        compatible = [listed[at : at + 4] for at in range(0, len(listed), 4)]
        return any(brand in brands for brand in compatible)

    return begins


def _mp3(head: bytes) -> bool:
    """An ID3 tag, or a frame header of MPEG layer III: sync, version, layer, bit rate and sample rate all legal."""
    if head.startswith(b"ID3"):
        return True
    if len(head) < 3 or head[0] != 0xFF:
        return False
    layer_three = head[1] & 0xE6 == 0xE2 and head[1] & 0x18 != 0x08
    return layer_three and 0x00 < head[2] >> 4 < 0x0F and head[2] & 0x0C != 0x0C


def _webm(head: bytes) -> bool:
    return head.startswith(b"\x1a\x45\xdf\xa3") and b"\x42\x82\x84webm" in head


def _trailer(*, magic: bytes, last: bytes) -> Callable[[bytes, bytes, int], bool]:
    """Some encoders pad after the trailer with NULs or a line end; no trailer here ends in one of those."""

    def ends(_head: bytes, tail: bytes, length: int) -> bool:
        return length >= len(magic) + len(last) and tail.rstrip(b"\0\t\n\r ").endswith(last)

    return ends


def _riff_size_equals(head: bytes, _tail: bytes, length: int) -> bool:
    """The RIFF header counts what follows its first 8 bytes; an odd count may or may not count its padding byte."""
    size = int.from_bytes(head[4:8], "little")
    return length in (size + 8, size + 8 + size % 2)


def _riff_size_within(head: bytes, _tail: bytes, length: int) -> bool:
    """Tags may follow the RIFF chunk; an encoder that could not seek back leaves 0 or all ones."""
    size = int.from_bytes(head[4:8], "little")
    return size in (0, 0xFFFFFFFF) or size + 8 <= length


def _first_box_within(head: bytes, _tail: bytes, length: int) -> bool:
    return 16 <= int.from_bytes(head[:4]) < length


def _longer_than_head(_head: bytes, _tail: bytes, length: int) -> bool:
    return length > HEAD_BYTES


_VAGUE_BRANDS: Final = frozenset((b"mif1", b"msf1"))
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_IEND: Final = b"\0\0\0\0IEND\xae\x42\x60\x82"


def _type(mime: str, extension: str, *, sealed: bool) -> MediaType:
    return MediaType(mime=mime, extension=extension, sealed=sealed)


_FORMATS: Final = (
    _Format(
        type=_type("image/jpeg", "jpg", sealed=True),
        begins=_magic(b"\xff\xd8\xff"),
        ends=_trailer(magic=b"\xff\xd8\xff", last=b"\xff\xd9"),
    ),
    _Format(
        type=_type("image/png", "png", sealed=True),
        begins=_magic(_PNG),
        ends=_trailer(magic=_PNG, last=_IEND),
    ),
    _Format(
        type=_type("image/webp", "webp", sealed=True),
        begins=_riff(b"WEBP"),
        ends=_riff_size_equals,
    ),
    _Format(
        type=_type("image/gif", "gif", sealed=True),
        begins=_magic(b"GIF87a", b"GIF89a"),
        ends=_trailer(magic=b"GIF89a", last=b";"),
    ),
    _Format(
        type=_type("image/avif", "avif", sealed=False),
        begins=_brand(b"avif", b"avis"),
        ends=_first_box_within,
    ),
    _Format(
        type=_type("image/heic", "heic", sealed=False),
        begins=_brand(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"),
        ends=_first_box_within,
    ),
    _Format(
        type=_type("video/quicktime", "mov", sealed=False),
        begins=_brand(b"qt  "),
        ends=_first_box_within,
    ),
    _Format(
        type=_type("audio/mp4", "m4a", sealed=False),
        begins=_brand(b"M4A ", b"M4B "),
        ends=_first_box_within,
    ),
    _Format(
        type=_type("video/mp4", "mp4", sealed=False),
        begins=_brand(
            *(b"isom", b"iso2", b"iso3", b"iso4", b"iso5", b"iso6", b"iso7", b"iso8", b"iso9"),
            *(b"mp41", b"mp42", b"mp71", b"avc1", b"dash", b"M4V ", b"M4VH", b"M4VP", b"MSNV", b"3gp4", b"3gp5"),
        ),
        ends=_first_box_within,
    ),
    _Format(
        type=_type("video/webm", "webm", sealed=False),
        begins=_webm,
        ends=_longer_than_head,
    ),
    _Format(
        type=_type("audio/wav", "wav", sealed=False),
        begins=_riff(b"WAVE"),
        ends=_riff_size_within,
    ),
    _Format(
        type=_type("audio/ogg", "ogg", sealed=False),
        begins=_magic(b"OggS\0"),
        ends=_longer_than_head,
    ),
    _Format(
        type=_type("audio/flac", "flac", sealed=False),
        begins=_magic(b"fLaC"),
        ends=_longer_than_head,
    ),
    _Format(
        type=_type("audio/mpeg", "mp3", sealed=False),
        begins=_mp3,
        ends=_longer_than_head,
    ),
)
"""Tried in this order. No two heads overlap."""

TYPES: Final = tuple(known.type for known in _FORMATS)
"""Every type that the gateway keeps."""
