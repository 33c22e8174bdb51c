"""A worker of the standard library alone, for ``benchmarks.chaos``: ten steps from its checkpoint on."""

import json
import os
import sys
import time
from pathlib import Path

STEPS, STEP_SECONDS = 10, 0.02


def main() -> None:
    """Read the job, take its steps, and hand in a picture and a manifest."""
    events = int(sys.argv[1])
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 65536)
        if not chunk:
            return  # the daemon died before it had sent the job
        line += chunk
    spec = json.loads(line)

    def say(event: str, **values: object) -> None:
        os.write(events, json.dumps({"event": event, **values}).encode() + b"\n")

    kept = Path(spec["checkpoint"]) / "state"
    for step in range(len(kept.read_bytes()) if kept.exists() else 0, STEPS):
        time.sleep(STEP_SECONDS)
        kept.with_suffix(".tmp").write_bytes(b"." * (step + 1))
        kept.with_suffix(".tmp").rename(kept)
        say("progress", step=step + 1, steps=STEPS, message=f"step {step + 1}")
    feature = spec["targets"][0]["feature"]
    Path("picture").write_bytes(b"\x89PNG\r\n\x1a\n" + feature.encode())
    Path("manifest").write_text(json.dumps({"feature": feature}), encoding="utf-8")
    say("result", index=0, picture="picture", manifest="manifest")
    say("done")


if __name__ == "__main__":
    main()
