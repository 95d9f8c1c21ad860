import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pytest import MonkeyPatch, fixture, mark, raises

from gateway.store import blobs_disk

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # sha256("hello")
OTHER = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa"  # sha256("other")
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@fixture
def blobs(tmp_path: Path) -> blobs_disk.DiskBlobs:
    return blobs_disk.DiskBlobs(tmp_path / "data" / "media")


@fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "media"


def keep(blobs: blobs_disk.DiskBlobs, content: bytes = b"hello", digest: str = HELLO) -> None:
    with blobs.temporary() as temporary:
        temporary.file.write(content)
        blobs.keep(temporary, digest)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_kept_blob_lies_under_its_digest(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    keep(blobs)
    assert files(root) == [f"2c/f2/{HELLO}"]
    assert blobs.path(HELLO) == root / "2c" / "f2" / HELLO
    assert (root / "2c" / "f2" / HELLO).read_bytes() == b"hello"


def test_nothing_is_made_before_the_first_write(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    assert blobs.path(HELLO) is None
    assert blobs.usage() == blobs_disk.Usage(blobs=0, size_bytes=0)
    assert blobs.sweep(older_than_s=0, now=NOW) == 0
    assert blobs.delete(HELLO) is False
    assert blobs.free_bytes() > 0
    assert not root.parent.exists()


def test_only_the_owner_may_look(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    before = os.umask(0)
    try:
        keep(blobs)
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in (root, *sorted(root.rglob("*")))
    }
    assert modes == {".": 0o700, ".tmp": 0o700, "2c": 0o700, "2c/f2": 0o700, f"2c/f2/{HELLO}": 0o600}


def test_an_unpublished_file_is_gone_after_the_block(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    with blobs.temporary() as temporary:
        temporary.file.write(b"hel")
        assert temporary.path.read_bytes() == b"hel"
    assert files(root) == []


def test_an_error_in_the_block_leaves_nothing(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    with raises(OSError, match="No space left"), blobs.temporary() as temporary:
        temporary.file.write(b"hel")
        raise OSError(28, "No space left on device")
    assert files(root) == []


def test_a_blob_kept_twice_is_one_file_and_renewed(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    keep(blobs)
    path = root / "2c" / "f2" / HELLO
    os.utime(path, (1, 1))
    inode = path.stat().st_ino
    keep(blobs)
    assert files(root) == [f"2c/f2/{HELLO}"]
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 1_700_000_000


def test_many_threads_may_keep_the_same_blob(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: keep(blobs), range(200)))
    assert files(root) == [f"2c/f2/{HELLO}"]
    assert (root / "2c" / "f2" / HELLO).read_bytes() == b"hello"


def test_the_bytes_are_durable_before_the_name_and_the_name_before_keep_returns(
    blobs: blobs_disk.DiskBlobs, root: Path, monkeypatch: MonkeyPatch
) -> None:
    """The order is the claim, and only the calls show it."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(number: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        calls.append(f"fsync {'temporary' if path.parent.name == '.tmp' else path.relative_to(root)}")
        fsync(number)

    def watched_rename(source: Path, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    with blobs.temporary() as temporary:
        temporary.file.write(b"hello")
        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "rename", watched_rename)
        blobs.keep(temporary, HELLO)
    assert calls == ["fsync temporary", "rename", "fsync 2c/f2", "fsync 2c", "fsync ."]


@mark.parametrize(
    "digest",
    [
        "",
        "../../etc/passwd",
        "..",
        "a" * 63,
        "a" * 65,
        "A" * 64,
        "g" * 64,
        "../" * 21 + "a",
        HELLO + "\n",
        HELLO[:63] + "/",
        HELLO[:63] + "\0",
        "٣" * 64,
    ],
)
def test_a_digest_is_checked_before_it_becomes_a_path(blobs: blobs_disk.DiskBlobs, digest: str, root: Path) -> None:
    with raises(ValueError, match="64 lower-case hex"):
        blobs.path(digest)
    with raises(ValueError, match="64 lower-case hex"):
        blobs.delete(digest)
    with raises(ValueError, match="64 lower-case hex"):
        keep(blobs, digest=digest)
    assert files(root) == []


def test_delete_removes_one_blob_and_says_whether_it_was_there(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    keep(blobs)
    keep(blobs, b"other", OTHER)
    assert blobs.delete(HELLO) is True
    assert blobs.delete(HELLO) is False
    assert blobs.path(HELLO) is None
    assert files(root) == [f"d9/29/{OTHER}"]


def test_usage_counts_published_blobs_only(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    keep(blobs)
    keep(blobs, b"other", OTHER)
    (root / "2c" / "f2" / "notes.txt").write_text("not ours")
    with blobs.temporary() as temporary:
        temporary.file.write(b"unfinished")
        assert blobs.usage() == blobs_disk.Usage(blobs=2, size_bytes=10)


def test_each_names_every_blob_with_its_size_and_age(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    keep(blobs)
    os.utime(root / "2c" / "f2" / HELLO, (NOW.timestamp(), NOW.timestamp()))
    assert list(blobs.each()) == [blobs_disk.Kept(digest=HELLO, size_bytes=5, kept_at=NOW)]


def test_each_leaves_out_what_vanishes_meanwhile(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    keep(blobs)
    path = root / "2c" / "f2" / HELLO
    path.unlink()
    path.symlink_to("gone")
    assert list(blobs.each()) == []


def test_sweep_removes_only_stale_temporary_files(blobs: blobs_disk.DiskBlobs, root: Path) -> None:
    keep(blobs)
    for name, age_s in (("old", 3601), ("young", 3599)):
        path = root / ".tmp" / name
        path.write_bytes(b"left by a crash")
        at = (NOW - timedelta(seconds=age_s)).timestamp()
        os.utime(path, (at, at))
    (root / ".tmp" / "vanished").symlink_to("gone")
    assert blobs.sweep(older_than_s=3600, now=NOW) == 1
    assert files(root) == [".tmp/young", f"2c/f2/{HELLO}"]
