"""Asks the kernel for what its arguments name and prints the answers as JSON, by question.

An answer is ``done``, the number of an OSError, or the name of another exception.
"""

import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

VICTIM = Path("../victim")


def _io_uring() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")


def _fork() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def _thread() -> None:
    thread = threading.Thread(target=len, args=("",))
    thread.start()
    thread.join()


def _rename_out() -> None:
    Path("moved").write_text("x", encoding="ascii")
    Path("moved").rename("../moved")


def _large_file() -> None:
    with Path("large").open("wb") as file:
        file.truncate(2 << 30)


def _spawn_write_outside() -> int:
    script = "open('../victim', 'w').write('spoilt')"
    return subprocess.run([sys.executable, "-c", script], check=False, stderr=-3).returncode


def _capabilities() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("CapPrm:")[2].split()[0], 16)


QUESTIONS: dict[str, Callable[[], object]] = {
    "inet": lambda: socket.socket(socket.AF_INET).close(),
    "inet6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "io_uring": _io_uring,
    "write_outside": lambda: Path("../new").write_text("x", encoding="ascii"),
    "truncate_outside": lambda: os.truncate(VICTIM, 0),
    "remove_outside": VICTIM.unlink,
    "link_outside": lambda: Path("../link").symlink_to("victim"),
    "rename_out": _rename_out,
    "chmod_outside": lambda: VICTIM.chmod(0),
    "chown_outside": lambda: os.chown(VICTIM, os.getuid(), os.getgid()),
    "attribute_outside": lambda: os.setxattr(VICTIM, "user.x", b"x"),
    "fork": _fork,
    "spawn": lambda: subprocess.run(["true"], check=True),
    "spawn_write_outside": _spawn_write_outside,
    "signal_parent": lambda: os.kill(int(sys.argv[1]), 0),
    "large_file": _large_file,
    "memory": lambda: bytearray(20 << 30),
    "raise_limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
    "read": lambda: Path("/etc/passwd").read_bytes(),
    "write_inside": lambda: Path("mine").write_text("x", encoding="ascii"),
    "thread": _thread,
    "unix_socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "null": lambda: Path("/dev/null").write_text("x", encoding="ascii"),
    "report": lambda: json.loads(os.environ["SIDECAR_SANDBOX"]),
    "capabilities": _capabilities,
}
_TOLD = ("report", "capabilities", "spawn_write_outside")


def answer(question: str) -> object:
    """Ask one question."""
    try:
        found = QUESTIONS[question]()
    except OSError as error:
        return error.errno
    except Exception as error:  # noqa: BLE001 - its name is the answer
        return type(error).__name__
    return found if question in _TOLD else "done"


if __name__ == "__main__":
    print(json.dumps({question: answer(question) for question in sys.argv[2:]}))  # noqa: T201 - the answer
