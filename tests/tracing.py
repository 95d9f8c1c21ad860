"""Runs a command under ptrace and records the system calls that decide what survives a power cut.

`python tests/tracing.py FOLDER COMMAND…`. In FOLDER: `calls.jsonl`, a line where a call begins and one where it ends;
`durable-N/`, the database as a power cut would have left it, taken when the log was synced for the Nth time.
While FOLDER holds `fail.json` (`{"calls": […], "file": part of its path, "errno": …}`), such a call is not made: it
returns the error, as a full or broken disk does.

A system's own tracer would need to be installed, a preloaded library a compiler; ptrace is in every Linux since 5.3,
and a parent may trace its child without any privilege. Linux on x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pathlib
import platform
import signal
import struct
import sys
from typing import Any, Final

TRACEME, CONT_SYSCALL, SETOPTIONS, GETREGSET, SETREGSET, SYSCALL_INFO = 0, 24, 0x4200, 0x4204, 0x4205, 0x420E
OPTIONS: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x100000
"""Mark stops at system calls; follow fork, vfork and clone; kill the command if the tracer dies."""
WALL: Final = 0x40000000
ENTRY, EXIT = 1, 2
NT_PRSTATUS, NT_ARM_SYSTEM_CALL = 1, 0x404

# Source: the kernel's tables for each machine; aarch64 has only the calls that take a directory.
NUMBERS: Final = {
    "x86_64": {
        **{1: "write", 18: "pwrite64", 20: "writev", 42: "connect", 44: "sendto", 46: "sendmsg", 74: "fsync"},
        **{75: "fdatasync", 77: "ftruncate", 82: "rename", 83: "mkdir", 258: "mkdirat", 264: "renameat"},
        **{307: "sendmmsg", 316: "renameat2"},
    },
    "aarch64": {
        **{34: "mkdirat", 38: "renameat", 46: "ftruncate", 64: "write", 66: "writev", 68: "pwrite64", 82: "fsync"},
        **{83: "fdatasync", 203: "connect", 206: "sendto", 211: "sendmsg", 269: "sendmmsg", 276: "renameat2"},
    },
}[platform.machine()]
SYNCS: Final = ("fsync", "fdatasync")
MOST_BYTES: Final = 64
"""How much of what is written is recorded."""
LONGEST_PATH: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, tid: int, address: Any = None, data: Any = None) -> int:
    result = int(_libc.ptrace(request, tid, address, data))
    if result == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {tid}: {os.strerror(ctypes.get_errno())}")
    return result


class Tracer:
    """The recorder: what each thread is in, which sockets are connected where, what has been synced."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.calls = (folder / "calls.jsonl").open("w", buffering=1)
        self.inside: dict[int, dict[str, Any]] = {}
        self.peers: dict[str, int] = {}
        self.images: dict[str, bytes] = {}
        self.durable: dict[str, bytes] = {}
        self.syncs = 0

    def stop(self, tid: int) -> None:
        """A thread is about to enter a system call, or has come out of it."""
        told = ctypes.create_string_buffer(88)
        _ptrace(SYSCALL_INFO, tid, len(told), told)
        operation = told.raw[0]
        if operation == ENTRY:
            number, *arguments = struct.unpack_from("<7Q", told.raw, 24)
            if number in NUMBERS:
                self._enter(tid, NUMBERS[number], arguments)
        elif operation == EXIT and tid in self.inside:
            (result,) = struct.unpack_from("<q", told.raw, 24)
            self._leave(tid, self.inside.pop(tid), result)

    def _enter(self, tid: int, name: str, arguments: list[int]) -> None:
        call: dict[str, Any] = {"tid": tid, "call": name, "at": "enter"}
        if name.startswith(("mkdir", "rename")):
            place = 1 if name in ("mkdirat", "renameat", "renameat2") else 0
            call["file"] = self._text(tid, arguments[place])
            if name.startswith("rename"):
                call["to"] = self._text(tid, arguments[place * 2 + 1])
        else:
            call["file"] = _target(tid, arguments[0])
        match name:
            case "connect":
                family, port = struct.unpack_from("=H", head := _memory(tid, arguments[1], 4))[0], 0
                if family in (2, 10):
                    (port,) = struct.unpack_from(">H", head, 2)
                self.peers[call["file"]] = call["port"] = port
            case "write" | "pwrite64" | "sendto":
                call["data"] = _memory(tid, arguments[1], min(arguments[2], MOST_BYTES)).decode("latin-1")
            case "writev" | "sendmsg":
                vector = arguments[1] if name == "writev" else _pointer(tid, arguments[1] + 16)
                at, length = struct.unpack("<2Q", _memory(tid, vector, 16))
                call["data"] = _memory(tid, at, min(length, MOST_BYTES)).decode("latin-1")
            case _:
                pass
        if call.get("file") in self.peers:
            call["port"] = self.peers[call["file"]]
        if name in SYNCS and call["file"].endswith((".db", ".db-wal")):
            self.images[call["file"]] = pathlib.Path(call["file"]).read_bytes()
        self._record(call)
        self.inside[tid] = call
        self._fail(tid, call)

    def _leave(self, tid: int, call: dict[str, Any], result: int) -> None:
        if "errno" in call:
            result = -call["errno"]
            _set_result(tid, result)
        left: dict[str, Any] = {name: call[name] for name in ("tid", "call", "file", "to", "port") if name in call}
        left |= {"at": "leave", "result": result}
        if call["call"] in SYNCS and result == 0 and call["file"] in self.images:
            name = pathlib.Path(call["file"]).name
            self.durable[name] = self.images.pop(call["file"])
            if name.endswith("-wal"):
                self.syncs += 1
                left["durable"] = f"durable-{self.syncs}"
                image = self.folder / left["durable"]
                image.mkdir()
                for name, content in self.durable.items():
                    (image / name).write_bytes(content)
        self._record(left)

    def _fail(self, tid: int, call: dict[str, Any]) -> None:
        try:
            wanted = json.loads((self.folder / "fail.json").read_text())
        except (OSError, ValueError):
            return
        if call["call"] in wanted["calls"] and wanted["file"] in call.get("file", ""):
            call["errno"] = wanted["errno"]
            _skip(tid)

    def _record(self, call: dict[str, Any]) -> None:
        self.calls.write(json.dumps(call) + "\n")

    def _text(self, tid: int, address: int) -> str:
        with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return os.fsdecode(memory.read(LONGEST_PATH).split(b"\0")[0])  # shorter where the mapping ends


def _memory(tid: int, address: int, length: int) -> bytes:
    with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length)


def _pointer(tid: int, address: int) -> int:
    return int(struct.unpack("<Q", _memory(tid, address, 8))[0])


def _target(tid: int, number: int) -> str:
    """What a file descriptor is: a path, or `socket:[…]`."""
    try:
        return os.readlink(f"/proc/{tid}/fd/{number & 0x7FFFFFFF}")
    except FileNotFoundError:
        return ""


def _vector(held: Any) -> Any:
    """Where a value is and how long: what the register calls take."""
    return (ctypes.c_uint64 * 2)(ctypes.addressof(held), ctypes.sizeof(held))


def _registers(tid: int) -> tuple[Any, Any]:
    held = (ctypes.c_uint64 * 34)()
    vector = _vector(held)
    _ptrace(GETREGSET, tid, NT_PRSTATUS, ctypes.byref(vector))
    return held, vector


def _skip(tid: int) -> None:
    """Make the call that the thread is about to enter none at all."""
    if platform.machine() == "x86_64":
        held, vector = _registers(tid)
        held[15] = 2**64 - 1  # orig_rax
        _ptrace(SETREGSET, tid, NT_PRSTATUS, ctypes.byref(vector))
    else:
        number = ctypes.c_int(-1)
        vector = _vector(number)
        _ptrace(SETREGSET, tid, NT_ARM_SYSTEM_CALL, ctypes.byref(vector))


def _set_result(tid: int, result: int) -> None:
    held, vector = _registers(tid)
    held[10 if platform.machine() == "x86_64" else 0] = result & (2**64 - 1)  # rax, x0
    _ptrace(SETREGSET, tid, NT_PRSTATUS, ctypes.byref(vector))


def _start(command: list[str]) -> int:
    """Start the command, stopped before its first instruction."""
    child = os.fork()
    if child == 0:
        try:
            _ptrace(TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    os.waitpid(child, WALL)
    _ptrace(SETOPTIONS, child, None, OPTIONS)
    _ptrace(CONT_SYSCALL, child, None, 0)
    return child


def run(folder: pathlib.Path, command: list[str]) -> int:
    """Trace the command to its end; returns its exit code. SIGTERM is passed on to it."""
    tracer = Tracer(folder)
    child = _start(command)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    while True:
        tid, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            tracer.inside.pop(tid, None)
            if tid == child:
                return os.waitstatus_to_exitcode(status)
            continue
        number = os.WSTOPSIG(status)
        try:
            if number == signal.SIGTRAP | 0x80:
                tracer.stop(tid)
            # Ours are the stops at fork and clone, and the SIGSTOP with which a new thread begins.
            is_ours = number in (signal.SIGTRAP | 0x80, signal.SIGTRAP, signal.SIGSTOP)
            _ptrace(CONT_SYSCALL, tid, None, 0 if is_ours else number)
        except OSError as error:
            if error.errno != errno.ESRCH:  # the thread was killed meanwhile
                raise


if __name__ == "__main__":
    code = run(pathlib.Path(sys.argv[1]), sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)
