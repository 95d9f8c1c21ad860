from hypothesis import given
from hypothesis import strategies as st
from pytest import mark

from gateway.rules import media

JPEG = bytes.fromhex("ffd8ffe000104a46494600") + b"picture" * 20 + b"\xff\xd9"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"picture" * 20 + b"\0\0\0\0IEND\xae\x42\x60\x82"
GIF = b"GIF89a" + b"picture" * 20 + b"\0;"
WEBP = b"RIFF" + bytes.fromhex("5c000000") + b"WEBPVP8 " + b"p" * 84  # 0x5c = 92 = 4 + 4 + 84, then 8 before it: 100
WAV = b"RIFF" + bytes.fromhex("5c000000") + b"WAVEfmt " + b"s" * 84
EBML = b"\x1a\x45\xdf\xa3\xa3\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08"


def box(major: bytes, *compatible: bytes) -> bytes:
    size = 16 + 4 * len(compatible)
    return bytes([0, 0, 0, size]) + b"ftyp" + major + b"\0\0\2\0" + b"".join(compatible) + b"b" * 100


def sniff(file: bytes) -> str | None:
    found = media.sniff(file[:64], file[-64:], len(file))
    return None if found is None else f"{found.mime} .{found.extension}"


@mark.parametrize(
    ("file", "expected"),
    [
        (JPEG, "image/jpeg .jpg"),
        (PNG, "image/png .png"),
        (GIF, "image/gif .gif"),
        (b"GIF87a" + GIF[6:], "image/gif .gif"),
        (WEBP, "image/webp .webp"),
        (box(b"avif"), "image/avif .avif"),
        (box(b"avis", b"avif"), "image/avif .avif"),
        (box(b"mif1", b"mif1", b"avif", b"miaf"), "image/avif .avif"),
        (box(b"heic"), "image/heic .heic"),
        (box(b"mif1", b"mif1", b"heic"), "image/heic .heic"),
        (box(b"isom", b"iso2", b"avc1", b"mp41"), "video/mp4 .mp4"),
        (box(b"mp42"), "video/mp4 .mp4"),
        (box(b"qt  "), "video/quicktime .mov"),
        (box(b"M4A "), "audio/mp4 .m4a"),
        (EBML + b"\x42\x82\x84webm" + b"v" * 100, "video/webm .webm"),
        (WAV, "audio/wav .wav"),
        (b"OggS\0\2" + b"s" * 100, "audio/ogg .ogg"),
        (b"fLaC\0\0\0\x22" + b"s" * 100, "audio/flac .flac"),
        (b"ID3\4\0\0" + b"s" * 100, "audio/mpeg .mp3"),
        (b"\xff\xfb\x90\x64" + b"s" * 100, "audio/mpeg .mp3"),  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz
        (b"\xff\xf3\x40\xc4" + b"s" * 100, "audio/mpeg .mp3"),  # MPEG 2 layer III, 32 kbit/s, 22.05 kHz
    ],
)
def test_whole_media_are_recognised_by_their_bytes(file: bytes, expected: str) -> None:
    assert sniff(file) == expected


@mark.parametrize(
    "file",
    [
        b"",
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b'{"error": {"code": "not_found"}}',
        b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        b"just text",
        b"\0" * 500,
        b"%PDF-1.7",
        b"PK\3\4" + b"z" * 100,
        b"\x1f\x8b\x08" + b"z" * 100,
        b"RIFF" + bytes.fromhex("5c000000") + b"AVI LIST" + b"v" * 84,
        box(b"mif1", b"mif1", b"miaf"),
        box(b"crx "),
        b"\xff",
        b"\xff\xfb",
        b"\xff\xf1\x50\x80" + b"s" * 100,  # AAC: not layer III
        b"\xff\xeb\x90\x64" + b"s" * 100,  # the reserved MPEG version
        b"\xff\xfb\xf0\x64" + b"s" * 100,  # the forbidden bit rate
        b"\xff\xfb\x00\x64" + b"s" * 100,  # the free bit rate
        b"\xff\xfb\x9c\x64" + b"s" * 100,  # the reserved sample rate
        EBML + b"\x42\x82\x88matroska" + b"v" * 100,
    ],
)
def test_what_is_no_medium_is_refused_at_its_first_bytes(file: bytes) -> None:
    assert media.begin(file[:64]) is None
    assert sniff(file) is None


@mark.parametrize(
    "file",
    [
        JPEG[:-1],
        JPEG[:-2],
        JPEG[:70],
        JPEG + b"<script>",
        b"\xff\xd8\xff\xd9",
        PNG[:-1],
        PNG[:-12],
        PNG[:8],
        GIF[:-1],
        b"GIF89a",
        WEBP[:-1],
        WEBP + b"pp",
        WAV[:-1],
        box(b"avif")[:16],
        box(b"isom", b"mp42")[:20],
        b"\0\0\0\x08ftypavif" + b"b" * 100,
        b"OggS\0\2" + b"s" * 58,
        b"fLaC",
    ],
)
def test_a_file_without_its_end_is_refused(file: bytes) -> None:
    assert media.begin(file[:64]) is not None
    assert sniff(file) is None


@mark.parametrize("padding", [b"\0", b"\n", b"\r\n", b"\0" * 16])
@mark.parametrize("file", [JPEG, PNG, GIF])
def test_a_little_padding_after_the_trailer_is_tolerated(file: bytes, padding: bytes) -> None:
    assert sniff(file + padding) == sniff(file)


@mark.parametrize("file", [JPEG, PNG, GIF])
def test_padding_that_fills_the_whole_tail_is_not(file: bytes) -> None:
    assert sniff(file + b"\0" * 64) is None


def test_an_odd_riff_size_may_or_may_not_count_its_padding() -> None:
    odd = b"RIFF" + bytes.fromhex("5d000000") + b"WEBPVP8 " + b"p" * 85
    assert sniff(odd) == "image/webp .webp"
    assert sniff(odd + b"\0") == "image/webp .webp"


@mark.parametrize("size", ["00000000", "ffffffff", "0c000000"])
def test_a_wav_may_be_streamed_or_followed_by_tags(size: str) -> None:
    assert sniff(b"RIFF" + bytes.fromhex(size) + b"WAVEfmt " + b"s" * 84) == "audio/wav .wav"


def test_only_formats_with_a_trailer_or_a_size_are_sealed() -> None:
    assert [kind.extension for kind in media.TYPES if kind.sealed] == ["jpg", "png", "webp", "gif"]


def test_every_extension_and_type_is_named_once() -> None:
    assert len({kind.extension for kind in media.TYPES}) == len(media.TYPES) == 14
    assert len({kind.mime for kind in media.TYPES}) == 14


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_without_an_error(file: bytes) -> None:
    kind = media.sniff(file[:64], file[-64:], len(file))
    assert kind is None or kind == media.begin(file[:64])
