"""Takes from a worker what it does not need, and then becomes it.

Run as ``python -I -S confine.py <settings> <command> ...``, with the standard library alone: what the
kernel takes from a process it takes from the thread that asks, so nothing that starts threads, such as
numpy, may have been imported before. The command inherits the loss. No rights are needed for any of it.

- Landlock: files are read-only but for the folders that are named; signals reach no process outside.
- seccomp: no socket but those of this machine's file system, no new process, no change of modes, owners
  and attributes, no io_uring, which could do all of that unseen.
- Capabilities, where the daemon runs as root: all are given up but that of reading.
- Limits: no core file, the size of files, memory, and the number of tasks.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

REPORT = "SIDECAR_SANDBOX"
"""Environment variable that tells the command what was taken, as JSON."""

LANDLOCK, SECCOMP, CAPABILITIES, LIMITS = "landlock", "seccomp", "capabilities", "limits"

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # <linux/prctl.h>
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # alike on all architectures
_LANDLOCK_VERSION = 1  # flag of landlock_create_ruleset
_PATH_BENEATH = 1
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
# Removing, and making files, folders, links, pipes, sockets and devices: bits 4 to 12.
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_SCOPE_ABSTRACT, _SCOPE_SIGNAL = 1, 2
_ABI_REFER, _ABI_TRUNCATE, _ABI_NET, _ABI_SCOPE = 2, 3, 4, 6

_SECCOMP_SET_FILTER, _SECCOMP_ACTION = 1, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_LEAST, _JUMP_SET, _RETURN = (
    0x20,
    0x15,
    0x35,
    0x45,
    0x06,
)  # <linux/bpf_common.h>
_AT_NUMBER, _AT_ARCH, _AT_FIRST = 0, 4, 16  # in struct seccomp_data; low half of the first argument
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
_X32 = 0x40000000  # numbers of the x32 calls, which are others than ours

_CAP_READ = 1 << 2  # CAP_DAC_READ_SEARCH: weights may belong to somebody else
_CAP_VERSION = 0x20080522

_SPARE_TASKS = 256  # threads and processes a worker may add to those that are there
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")
_CUDA_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/*")


class Calls:
    """Numbers of one architecture's system calls, from the kernel's tables."""

    def __init__(self, arch: int, seccomp: int, capset: int, numbers: dict[str, int]) -> None:
        """Keep them."""
        self.arch, self.seccomp, self.capset, self.numbers = arch, seccomp, capset, numbers


_X86 = Calls(
    0xC000003E, 317, 126,
    {
        "socket": 41, "clone": 56, "fork": 57, "vfork": 58, "chmod": 90, "fchmod": 91, "chown": 92,
        "fchown": 93, "lchown": 94, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
        "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "fchownat": 260,
        "fchmodat": 268, "io_uring_setup": 425, "clone3": 435, "fchmodat2": 452, "setxattrat": 463,
        "removexattrat": 466,
    },
)  # fmt: skip
_ARM = Calls(
    0xC00000B7, 277, 91,
    {
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
        "fremovexattr": 16, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55,
        "socket": 198, "clone": 220, "io_uring_setup": 425, "clone3": 435, "fchmodat2": 452,
        "setxattrat": 463, "removexattrat": 466,
    },
)  # fmt: skip
_MACHINES = {"x86_64": _X86, "aarch64": _ARM}
_PROCESSES = ("fork", "vfork")


def missing() -> tuple[str, ...]:
    """Return what of a sandbox this kernel does not have, in words; takes nothing from this process."""
    found = []
    if _abi() < _ABI_TRUNCATE:
        found.append("Landlock of Linux 6.2 or later: files stay writable")
    action = ctypes.c_uint32(_ERRNO)
    calls = _MACHINES.get(platform.machine())
    if calls is None or _call(calls.seccomp, _SECCOMP_ACTION, 0, ctypes.byref(action)) < 0:
        found.append(f"seccomp on {platform.machine()}: network and processes stay open")
    return tuple(found)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: Any) -> int:
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return int(libc.syscall(ctypes.c_long(number), *wide))


def _must(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _abi() -> int:
    return _call(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)


def _landlock(writable: Sequence[str], devices: Sequence[str]) -> None:
    """Make all files read-only but for those beneath some folders, and some devices."""
    abi = _abi()
    if abi < 1:
        raise OSError(errno.ENOSYS, "Landlock: not in this kernel")
    changes = _CHANGES | (_REFER if abi >= _ABI_REFER else 0)
    changes |= _TRUNCATE if abi >= _ABI_TRUNCATE else 0
    scope = _SCOPE_ABSTRACT | _SCOPE_SIGNAL if abi >= _ABI_SCOPE else 0
    size = 24 if abi >= _ABI_SCOPE else 16 if abi >= _ABI_NET else 8
    attributes = struct.pack("=QQQ", changes, 0, scope)[:size]
    rules = _must(_call(_LANDLOCK_CREATE, attributes, size, 0), "landlock_create_ruleset")
    try:
        for path in writable:
            _beneath(rules, path, changes)
        for path in devices:
            _beneath(rules, path, changes & (_WRITE_FILE | _TRUNCATE))
        _must(_call(_LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")
    finally:
        os.close(rules)
    if abi < _ABI_TRUNCATE:
        raise OSError(errno.ENOSYS, "Landlock: this kernel lets files be cut short")


def _beneath(rules: int, path: str, access: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        attributes = struct.pack("=Qi", access, place)
        added = _call(_LANDLOCK_ADD, rules, _PATH_BENEATH, attributes, 0)
        _must(added, f"landlock_add_rule({path})")
    finally:
        os.close(place)


def _capabilities(calls: Calls) -> None:
    """Give up every capability but that of reading others' files, which never comes back."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = int(status.partition("CapPrm:")[2].split()[0], 16) & _CAP_READ
    header = struct.pack("=Ii", _CAP_VERSION, 0)
    sets = struct.pack("=IIIIII", held, held, 0, 0, 0, 0)
    _must(_call(calls.capset, header, sets), "capset")


def _instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _program(calls: Calls, *, processes: bool) -> bytes:
    """Return the filter: each refused call is its own test, so that the order does not matter."""

    def refuse(number: int) -> bytes:
        return _instruction(_RETURN, 0, 0, _ERRNO | number)

    numbers = dict(calls.numbers)
    socket, clone, clone3 = (numbers.pop(name) for name in ("socket", "clone", "clone3"))
    parts = [
        _instruction(_LOAD, 0, 0, _AT_ARCH),
        _instruction(_JUMP_EQUAL, 1, 0, calls.arch) + refuse(errno.EPERM),
        _instruction(_LOAD, 0, 0, _AT_NUMBER),
        _instruction(_JUMP_LEAST, 0, 1, _X32) + refuse(errno.EPERM),
    ]
    for name, number in numbers.items():
        if not processes or name not in _PROCESSES:
            parts.append(_instruction(_JUMP_EQUAL, 0, 1, number) + refuse(errno.EPERM))
    if not processes:
        # Its flags lie in memory, where no filter sees them; the C library then takes clone.
        parts.append(_instruction(_JUMP_EQUAL, 0, 1, clone3) + refuse(errno.ENOSYS))
        parts.append(_first_argument(clone, _JUMP_SET, _CLONE_THREAD, refuse(errno.EPERM)))
    parts.append(_first_argument(socket, _JUMP_EQUAL, _AF_UNIX, refuse(errno.EACCES)))
    return b"".join([*parts, _instruction(_RETURN, 0, 0, _ALLOW)])


def _first_argument(number: int, test: int, value: int, refusal: bytes) -> bytes:
    """Allow a call where its first argument passes a test; go on with other calls."""
    return (
        _instruction(_JUMP_EQUAL, 0, 4, number)
        + _instruction(_LOAD, 0, 0, _AT_FIRST)
        + _instruction(test, 0, 1, value)
        + _instruction(_RETURN, 0, 0, _ALLOW)
        + refusal
    )


def _seccomp(calls: Calls, *, processes: bool) -> None:
    program = _program(calls, processes=processes)
    body = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(body))
    _must(_call(calls.seccomp, _SECCOMP_SET_FILTER, 0, header), "seccomp")


def _limit(what: int, value: int) -> None:
    _, hardest = resource.getrlimit(what)
    most = value if hardest == resource.RLIM_INFINITY else min(value, hardest)
    resource.setrlimit(what, (most, most))


def _limits(settings: dict[str, Any]) -> None:
    _limit(resource.RLIMIT_CORE, 0)
    if settings["file_bytes"]:
        _limit(resource.RLIMIT_FSIZE, settings["file_bytes"])
    if settings["memory_bytes"] and not settings["cuda"]:
        _limit(resource.RLIMIT_AS, settings["memory_bytes"])
    # The kernel counts all tasks of the user, whoever started them, and none of root's.
    tasks = int(Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[2])
    _limit(resource.RLIMIT_NPROC, tasks + _SPARE_TASKS)


def _devices(*, cuda: bool) -> list[str]:
    patterns = _CUDA_DEVICES if cuda else ()
    found = [str(path) for pattern in patterns for path in Path("/").glob(pattern[1:])]
    return [path for path in (*_DEVICES, *found) if not Path(path).is_dir() and Path(path).exists()]


def confine(settings: dict[str, Any]) -> dict[str, str]:
    """Take from this process what the settings say.

    Returns:
        What was not to be had, by name, and why.
    """
    failed: dict[str, str] = {}

    def tried(name: str, *steps: Any) -> None:
        try:
            for step in steps:
                step()
        except (OSError, ValueError) as error:
            failed[name] = str(error)

    _must(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    calls = _MACHINES.get(platform.machine())
    cuda = bool(settings["cuda"])
    tried(LIMITS, lambda: _limits(settings))
    tried(LANDLOCK, lambda: _landlock(settings["writable"], _devices(cuda=cuda)))
    if calls is None:
        failed |= dict.fromkeys((CAPABILITIES, SECCOMP), f"not on {platform.machine()}")
        return failed
    tried(CAPABILITIES, lambda: _capabilities(calls))
    tried(SECCOMP, lambda: _seccomp(calls, processes=bool(settings["processes"])))
    return failed


def main(argv: list[str]) -> int:
    """Confine this process and become the command; returns only where that fails."""
    # Before anything else: from here on this process cannot outlive the daemon's thread.
    _must(_libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    settings = json.loads(argv[1])
    failed = confine(settings)
    if failed and settings["mode"] == "require":
        print(f"the sandbox is not whole: {failed}", file=sys.stderr)  # noqa: T201 - kept by the daemon
        return 5
    done = [name for name in (LANDLOCK, SECCOMP, CAPABILITIES, LIMITS) if name not in failed]
    report = {"mode": settings["mode"], "applied": done, "missing": failed}
    return _become(argv[2:], {**os.environ, REPORT: json.dumps(report)})


def _become(command: list[str], env: Mapping[str, str]) -> NoReturn:
    os.execve(command[0], command, env)  # noqa: S606 - no shell


if __name__ == "__main__":
    sys.exit(main(sys.argv))
