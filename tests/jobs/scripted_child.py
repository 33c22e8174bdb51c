"""A child that speaks the runner's protocol without torch; what it does is named by its model.

Run as ``python -I -S scripted_child.py <descriptor>``: it needs the standard library only, so it
starts in some 20 ms and hundreds of it can be killed in a test.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"
EVENTS = int(sys.argv[1]) if __name__ == "__main__" else -1


def say(event: str, **values: object) -> None:
    """Write one event."""
    os.write(EVENTS, json.dumps({"event": event, **values}).encode() + b"\n")


def progress(step: int, steps: int) -> None:
    """Say how far it is, with a picture of it."""
    say("progress", step=step, steps=steps, message=f"step {step}")
    Path("preview.tmp").write_bytes(PNG + str(step).encode())
    Path("preview.tmp").rename("preview.png")
    say("preview", file="preview.png")


def finish(spec: dict) -> None:
    """Make a picture and a manifest for every target."""
    for index, target in enumerate(spec["targets"]):
        seed = str(spec["recipe"]["seed"]).encode()
        Path(f"p{index}").write_bytes(PNG + target["feature"].encode() + b" " + seed)
        facts = {"feature": target["feature"], "attempt": spec["attempt"], "live": spec["live"]}
        facts["seed"] = spec["recipe"]["seed"]
        Path(f"m{index}").write_text(json.dumps(facts), encoding="utf-8")
        say("result", index=index, picture=f"p{index}", manifest=f"m{index}")
    say("done")


def work(spec: dict) -> None:
    """Take a few small steps."""
    for step in range(1, 6):
        progress(step, 5)
        time.sleep(0.004)
    finish(spec)


def resumable(spec: dict) -> None:
    """Take twenty steps, noting each, and go on from the checkpoint; crash once where it is asked for."""
    kept = Path(spec["checkpoint"]) / "state"
    reached = int(kept.read_text()) if kept.exists() else 0
    for step in range(reached + 1, 21):
        if spec["attempt"] == 1 and step == int(os.environ.get("CRASH_AT", "0")):
            crash(spec)
        time.sleep(0.1)
        # Note and checkpoint are one: a request to end waits for both.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if "STEPS" in os.environ:
            with Path(os.environ["STEPS"]).open("a") as steps:
                steps.write(f"{step}\n")
        kept.with_suffix(".tmp").write_text(str(step))
        kept.with_suffix(".tmp").rename(kept)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        progress(step, 20)
    finish(spec)


def alone(spec: dict) -> None:
    """Work, and leave a mark where another child of the same job works at the same time."""
    folder = Path(os.environ["LOCKS"])
    lock = folder / spec["job_id"]
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        (folder / "overlap").touch()
    for step in range(1, 4):
        progress(step, 3)
        time.sleep(0.01)
    with (folder / "runs").open("a") as runs:
        runs.write(spec["job_id"] + "\n")
    lock.unlink()
    finish(spec)


def hang(_: dict) -> None:
    """Never end by itself."""
    progress(1, 100)
    time.sleep(600)


def stubborn(spec: dict) -> None:
    """Never end, not even when asked."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang(spec)


def family(_: dict) -> None:
    """Start a process of its own, say which, and hang."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    grandchild = subprocess.Popen([sys.executable, "-I", "-S", "-c", code])
    say("progress", step=1, steps=2, message=f"grandchild {grandchild.pid}")
    time.sleep(600)


def crash(_: dict) -> None:
    """Print something and die by a signal."""
    print("about to crash: out of luck", flush=True)  # noqa: T201 - what a model's code would do
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(_: dict) -> None:
    """Exit without a word."""
    sys.exit(7)


def crash_once(spec: dict) -> None:
    """Get to step 60 and crash; the second attempt works."""
    for step in range(0, 61, 20) if spec["attempt"] == 1 else range(0, 101, 20):
        say("progress", step=step, steps=100, message="")
        time.sleep(0.3)
    if spec["attempt"] == 1:
        crash(spec)
    finish(spec)


def refuse(_: dict) -> None:
    """Say that the feature is silent."""
    say("failure", code="SC803", message="unit 7 gives no gradient", retry=False)


def greedy(spec: dict) -> None:
    """Say that 10 MiB of the GPU are wanted, until the file that NVML reads says there are."""
    free = int(Path(os.environ["GPU_FREE"]).read_text())
    if free < 10 << 20:
        say("held_back", reason="10 MiB are wanted", needs_bytes=10 << 20)
    else:
        work(spec)


def exhausted(_: dict) -> None:
    """Find no memory on the GPU."""
    say("failure", code="SC810", message="CUDA out of memory", retry=True)


def babble(_: dict) -> None:
    """Write what is no event."""
    os.write(EVENTS, b"{not an event}\n")
    time.sleep(600)


def lie(_: dict) -> None:
    """Say done without having made anything."""
    say("done")


def linger(spec: dict) -> None:
    """Say done, and hang on the way out."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finish(spec)
    time.sleep(600)


def escape(spec: dict) -> None:
    """Name a file outside its folder as its picture."""
    Path("m0").write_text("{}", encoding="utf-8")
    say("result", index=0, picture="../../../../../../etc/hostname", manifest="m0")
    say("done")


def chatter(spec: dict) -> None:
    """Print megabytes on both outputs, then fail."""
    for number in range(20_000):
        print(f"line {number} " + "x" * 80)  # noqa: T201 - what a model's code would do
    sys.stdout.flush()
    print("the last line", file=sys.stderr)  # noqa: T201 - what a model's code would do
    leave(spec)


def main() -> None:
    """Read the specification and do what the model's factory says."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65536)
        if not chunk:
            return  # the daemon died before it had sent the job
        line += chunk
    spec = json.loads(line)
    globals()[spec["model"]["factory"].partition(":")[2]](spec)


if __name__ == "__main__":
    main()
