"""Jobs while daemons and workers are killed: each is done exactly once, and nothing is left over.

``python -m benchmarks.chaos [JOBS] [SEED]``. A daemon here is a process with the queue, the store and a
runner of two slots, as ``sidecar run`` has them; its workers are scripted and sandboxed, take ten steps
of 20 ms and go on from their checkpoints. A driver submits jobs of all priorities, and at random moments
ends a worker or the daemon with SIGKILL. Exits 1 where a promise is broken.
"""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from sidecar.config import JobsConfig, ModelConfig
from sidecar.features import FeatureKey
from sidecar.jobs import JobQueue, JobRequest, JobState, Priority, Runner
from sidecar.recipes import Target
from sidecar.store import ArtifactStore, Database

ROOT = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("chaos_worker.py")
SLOTS = 2
_DAEMON_SHARE = (
    0.1  # of kills; a daemon takes a second or two to start, in which nothing is at risk
)
STALL_SECONDS = 60.0
"""Without any job ending for so long, jobs hang."""


@dataclass(frozen=True)
class Findings:
    """What came of it.

    Attributes:
        jobs: How many were submitted.
        worker_kills: Workers that were killed.
        daemon_kills: Daemons that were killed.
        attempts: Jobs by number of attempts that were counted.
        seconds: Wall time.
        problems: Broken promises, in words.
    """

    jobs: int
    worker_kills: int
    daemon_kills: int
    attempts: dict[int, int]
    seconds: float
    problems: tuple[str, ...]

    def __str__(self) -> str:
        """Return the lines that are printed."""
        attempts = ", ".join(f"{n}: {count}" for n, count in sorted(self.attempts.items()))
        return "\n".join(
            [
                f"jobs                  {self.jobs}",
                f"workers killed        {self.worker_kills}",
                f"daemons killed        {self.daemon_kills}",
                f"jobs by attempts      {attempts}",
                f"seconds               {self.seconds:.0f}",
                *(f"BROKEN                {problem}" for problem in self.problems),
                "every promise was kept" if not self.problems else "promises were broken",
            ]
        )


def queue_at(root: Path) -> tuple[Database, JobQueue]:
    """Return the queue in a folder; no job runs out of attempts, however often it is killed."""
    database = Database(root / "s.db")
    queue = JobQueue(
        database, queue_limit=10_000, lease_seconds=30, attempt_limit=10_000, retry_seconds=0
    )
    return database, queue


def serve(root: Path) -> None:
    """Be a daemon until the end."""
    _, queue = queue_at(root)
    runner = Runner(
        queue,
        ArtifactStore(root / "artifacts", 1 << 30),
        lambda name: ModelConfig(name=name, factory="script:model"),
        JobsConfig(concurrency=SLOTS),
        root / "scratch",
        lambda _: {},
        command=(sys.executable, "-I", "-S", str(WORKER)),
    )
    runner.start()
    signal.pause()


def run_chaos(root: Path, jobs: int, seed: int) -> Findings:
    """Submit jobs, kill at random until all have ended, and look at what is left.

    Args:
        root: An empty folder.
        jobs: How many.
        seed: Of the order of jobs and kills; moments depend on the machine as well.
    """
    rng = random.Random(seed)  # noqa: S311 - a repeatable fault
    began = time.monotonic()
    database, queue = queue_at(root)
    _count_completions(database)
    ids = [_submit(queue, number, rng) for number in range(jobs)]
    storm = _Storm(root, queue, rng)
    storm.blow()
    problems = tuple(_problems(root, database, queue, ids))
    found = [queue.get(job_id) for job_id in ids]
    database.close()
    return Findings(
        jobs,
        storm.worker_kills,
        storm.daemon_kills,
        dict(Counter(job.attempts for job in found)),
        time.monotonic() - began,
        problems,
    )


def _submit(queue: JobQueue, number: int, rng: random.Random) -> str:
    feature = FeatureKey.parse(f"m{number % 3}@r/layer/channel/{number}")
    request = JobRequest(
        (Target(feature),),
        idempotency_key=f"job-{number}",
        asked_priority=rng.choice(list(Priority)),
    )
    job = queue.submit(request, time.time())
    again = queue.submit(request, time.time())  # as a caller does who got no answer
    assert job.id == again.id  # noqa: S101 - else there are more jobs than were asked for
    return job.id


def _count_completions(database: Database) -> None:
    """Have the database itself write down every completion."""
    with database.transaction() as cursor:
        cursor.execute("CREATE TABLE completions (id TEXT)")
        cursor.execute(
            "CREATE TRIGGER completed AFTER UPDATE ON jobs "
            "WHEN NEW.state = 'done' BEGIN INSERT INTO completions VALUES (NEW.id); END"
        )


class _Storm:
    """A daemon that is killed and started again, and its workers that are killed beside it."""

    def __init__(self, root: Path, queue: JobQueue, rng: random.Random) -> None:
        self._root, self._queue, self._rng = root, queue, rng
        self.worker_kills = self.daemon_kills = 0

    def blow(self) -> None:
        """Return once every job has ended and the last daemon is gone; it has time to tidy up."""
        daemon = self._start()
        before, ended_at = 0, time.monotonic()
        try:
            while (left := self._left()) and time.monotonic() - ended_at < STALL_SECONDS:
                if left != before:
                    before, ended_at = left, time.monotonic()
                time.sleep(self._rng.uniform(0.1, 0.9))
                busy = list(workers(self._root))
                if busy and self._rng.random() < _DAEMON_SHARE:
                    daemon.kill()
                    daemon.wait()
                    self.daemon_kills += 1
                    daemon = self._start()
                elif busy:
                    self._kill(self._rng.choice(busy))
            deadline = time.monotonic() + 15
            while _left_over(self._root) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            daemon.kill()
            daemon.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.chaos", "--serve", str(self._root)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    def _left(self) -> int:
        counts = self._queue.counts()
        return counts[JobState.QUEUED] + counts[JobState.RUNNING]

    def _kill(self, worker: psutil.Process) -> None:
        with suppress(psutil.Error):
            worker.kill()
            self.worker_kills += 1


def workers(root: Path) -> Iterator[psutil.Process]:
    """Yield the living processes whose folder is below a root."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd().startswith(str(root)) and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _left_over(root: Path) -> list[str]:
    folders = [root / "scratch", root / "checkpoints"]
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*")]
    temporary = list((root / "artifacts").rglob("*.tmp*"))
    return [str(path.relative_to(root)) for path in (*files, *temporary)]


def _problems(root: Path, database: Database, queue: JobQueue, ids: list[str]) -> Iterator[str]:
    """Yield every promise that was broken."""
    completions = Counter(row[0] for row in database.query("SELECT id FROM completions"))
    artifacts = ArtifactStore(root / "artifacts", 1 << 30)
    for job_id in ids:
        job = queue.get(job_id)
        if (job.state, completions[job_id]) != (JobState.DONE, 1):
            yield f"job {job_id} is {job.state} and was completed {completions[job_id]} times"
        for portrait in job.portraits:
            feature = job.request.targets[0].feature
            # get() verifies the digest of what it returns.
            if str(feature).encode() not in artifacts.get(portrait.picture_digest):
                yield f"job {job_id} has the picture of something else"
            artifacts.get(portrait.manifest_digest)
    if len(queue.list(10_000)) != len(ids):
        yield f"there are {len(queue.list(10_000))} jobs, {len(ids)} were asked for"
    yield from (f"process {process.pid} is left" for process in workers(root))
    yield from (f"{path} is left" for path in _left_over(root))
    if database.query("PRAGMA integrity_check")[0][0] != "ok":
        yield "the database is damaged"


def main(argv: list[str]) -> int:
    """Run it and print what came of it."""
    if argv[1:2] == ["--serve"]:
        serve(Path(argv[2]))
        return 0
    jobs, seed = (int(value) for value in (*argv[1:], *("200", "0")[len(argv) - 1 :]))
    with TemporaryDirectory(prefix="sidecar-chaos-") as folder:
        findings = run_chaos(Path(folder).resolve(), jobs, seed)
    print(findings)
    return bool(findings.problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
