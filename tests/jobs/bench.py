"""A queue, a store and runners over them, with scripted children."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sidecar.config import JobsConfig, ModelConfig
from sidecar.features import FeatureKey
from sidecar.jobs import Job, JobQueue, JobRequest, LiveContext, Runner
from sidecar.recipes import Maximisation, Target
from sidecar.store import ArtifactStore, Database

SCRIPT = Path(__file__).with_name("scripted_child.py")
COMMAND = (sys.executable, "-I", "-S", str(SCRIPT))
DEADLINE_SECONDS = 60.0
"""For conditions that hold within a second on an idle machine."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return once a condition holds; fail with words after a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.005)


def request(behaviour: str, *units: int, **values: object) -> JobRequest:
    """Ask for pictures of units of a model whose scripted child behaves so."""
    recipe = values.pop("recipe", Maximisation())
    targets = tuple(
        Target(FeatureKey.parse(f"{behaviour}@r1/layer/channel/{unit}")) for unit in units or (0,)
    )
    return JobRequest(targets, recipe, **values)  # type: ignore[arg-type]  # passed on as given


def model(name: str) -> ModelConfig | None:
    """Every model exists and behaves like its name, but for two."""
    if name == "unconfigured":
        return None
    return ModelConfig(name=name, factory=None if name == "watched" else f"script:{name}")


@dataclass
class Bench:
    """Everything a job needs, in one folder."""

    root: Path
    queue: JobQueue
    artifacts: ArtifactStore
    database: Database
    runners: list[Runner] = field(default_factory=list)
    live: dict[str, LiveContext] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """Where children write."""
        return self.root / "scratch"

    def runner(self, *, env: Mapping[str, str] | None = None, **config: object) -> Runner:
        """Return a runner of scripted children; it is stopped with the test."""
        runner = Runner(
            self.queue,
            self.artifacts,
            model,
            JobsConfig(**{"sandbox": "off", **config}),  # type: ignore[arg-type]  # checked by pydantic
            self.scratch,
            lambda _: self.live,
            command=COMMAND,
            env={**os.environ, **(env or {})},
        )
        self.runners.append(runner)
        return runner

    def submit(self, behaviour: str, *units: int, **values: object) -> Job:
        """Submit a job for a scripted child."""
        return self.queue.submit(request(behaviour, *units, **values), time.time())

    def ended(self, job: Job) -> Job:
        """Return a job once it has ended."""
        wait_until(lambda: self.queue.get(job.id).state.ended, f"the end of {job.id}")
        return self.queue.get(job.id)

    def started(self, job: Job) -> Job:
        """Return a job once its child has said something."""
        wait_until(lambda: self.queue.get(job.id).step > 0, f"the first step of {job.id}")
        return self.queue.get(job.id)


def bench_at(root: Path, **bounds: float) -> Bench:
    """Return a bench over a folder; bounds of the queue as given."""
    root.mkdir(parents=True, exist_ok=True)
    database = Database(root / "s.db")
    wanted = {"queue_limit": 1000, "lease_seconds": 30.0, "attempt_limit": 3, "retry_seconds": 0.0}
    queue = JobQueue(database, **(wanted | bounds))  # type: ignore[arg-type]  # whole where whole is wanted
    return Bench(root, queue, ArtifactStore(root / "artifacts", 1 << 30), database)


def lives(process: psutil.Process) -> bool:
    """Return whether a process runs and is no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children() -> list[psutil.Process]:
    """Return this process's living children, theirs included."""
    return [process for process in psutil.Process().children(recursive=True) if lives(process)]
