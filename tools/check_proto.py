"""Checks that the committed wire code is what ``proto/`` generates, and that v1 only grew."""

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = Path("sidecar/wire/v1")


def main() -> int:
    """Return 0 if nothing drifted; else print what and how to mend it, and return 1."""
    problems = [*_drift(), *_broken()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return bool(problems)


def _drift() -> list[str]:
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    bin_dir = ROOT / ".venv-proto" / "bin"
    env = {**os.environ, "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python")]
        outputs += [f"--{kind}_out=quiet:{folder}" for kind in ("mypy", "mypy_grpc")]
        command = [str(bin_dir / "python"), "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"]
        subprocess.run([*command, *outputs, *map(str, protos)], check=True, env=env)
        made = {p.name: p for p in (Path(folder) / GENERATED).iterdir()}
        kept = {p.name: p for p in (ROOT / GENERATED).glob("*_pb2*")}
        drifted = sorted(
            name
            for name in made.keys() | kept.keys()
            if name not in made
            or name not in kept
            or not filecmp.cmp(made[name], kept[name], shallow=False)
        )
    return [f"{GENERATED / name} is not what proto/ generates: run make proto" for name in drifted]


def _broken() -> list[str]:
    buf = [str(ROOT / ".venv" / "bin" / "buf")]
    problems = []
    for arguments in (["lint"], ["breaking", "--against", "baseline.binpb"]):
        found = subprocess.run(
            [*buf, *arguments], cwd=ROOT / "proto", capture_output=True, text=True, check=False
        )
        problems += (found.stdout + found.stderr).strip().splitlines() if found.returncode else []
    return problems


if __name__ == "__main__":
    sys.exit(main())
