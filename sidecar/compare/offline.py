"""A comparison without a daemon: a queue and a runner of their own, for as long as it takes."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sidecar.compare.report import Answer
from sidecar.config import SidecarConfig
from sidecar.errors import JobError
from sidecar.features import FeatureKey
from sidecar.jobs import Datasets, Job, JobQueue, JobRequest, JobState, Portrait, Runner
from sidecar.recipes import Comparison, Target
from sidecar.store import ArtifactStore, Database

_WAIT_SECONDS = 1.0  # silence after which the job is looked at again in any case


def compare_offline(
    config: SidecarConfig,
    features: Sequence[FeatureKey],
    recipe: Comparison,
    *,
    time_limit_seconds: float = 0.0,
    on_change: Callable[[Job], None] = lambda _: None,
) -> tuple[Answer, ...]:
    """Compare features of a configured model with another one, in a worker child of this process.

    Args:
        config: Where models, datasets and the worker's settings are; its state_dir is left alone.
        features: Of one model and revision.
        recipe: Names the other model and the dataset.
        time_limit_seconds: Wall time; 0 takes the configured limit.
        on_change: Told whenever the job has come further.

    Returns:
        An answer a feature, in their order.

    Raises:
        JobError: The job failed; the message is the worker's.
        StorageError: The temporary folder cannot be used.
    """
    request = JobRequest(
        tuple(map(Target, features)), recipe, time_limit_seconds=time_limit_seconds
    )
    with tempfile.TemporaryDirectory(prefix="sidecar-compare-") as folder:
        database = Database(Path(folder, "sidecar.sqlite3"))
        try:
            return _compared(config, request, Path(folder), database, on_change)
        finally:
            database.close()


def _compared(
    config: SidecarConfig,
    request: JobRequest,
    root: Path,
    database: Database,
    on_change: Callable[[Job], None],
) -> tuple[Answer, ...]:
    queue = JobQueue(
        database, queue_limit=1, lease_seconds=config.jobs.lease_seconds, attempt_limit=1
    )
    artifacts = ArtifactStore(root / "artifacts", config.store.artifact_limit_bytes)
    runner = Runner(
        queue,
        artifacts,
        config.model,
        config.jobs,
        root / "scratch",
        lambda _: {},
        datasets=Datasets(config.datasets),
    )
    job = queue.submit(request, time.time())
    runner.start()
    try:
        done = _follow(queue, job, on_change)
    finally:
        runner.stop()
    if done.state is not JobState.DONE:
        raise JobError(f"the comparison {done.state}: {done.error_code} {done.error}")
    return tuple(_answer(artifacts, one) for one in done.portraits)


def _follow(queue: JobQueue, job: Job, on_change: Callable[[Job], None]) -> Job:
    """Return the job once it has ended."""
    version = -1
    while True:
        found = queue.get(job.id)
        on_change(found)
        if found.state.ended:
            return found
        version = queue.wait_change(job.id, version, _WAIT_SECONDS)


def _answer(artifacts: ArtifactStore, portrait: Portrait) -> Answer:
    return Answer(
        content_key=portrait.content_key,
        picture_digest=portrait.picture_digest,
        picture=artifacts.get(portrait.picture_digest),
        manifest_digest=portrait.manifest_digest,
        manifest=artifacts.get(portrait.manifest_digest),
    )
