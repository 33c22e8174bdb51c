"""The composition root: builds the daemon from its configuration, starts it, ends it.

Threads: the event loop (gRPC), the lane's acceptor and a reader for each of its connections, the
writer (statistics and detectors), the metrics server, the console, the job runner and its children, audits,
housekeeping (snapshots, audit log, recording, disk), and one that ends once the kernels are compiled. Only the
writer puts samples into the bank; everybody else reads copies.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import structlog

import sidecar
from sidecar.audits import AuditStatus, NightlyAudits, Tools
from sidecar.compilation import Compilation, Loops, load_compiled
from sidecar.config import SidecarConfig
from sidecar.errors import ConfigError, SidecarError
from sidecar.ingest import Destination, GrpcServer, LaneServer, Ledger, Pipeline
from sidecar.jobs import ArtifactIndex, Datasets, Dictionaries, JobQueue, JobState, Runner
from sidecar.memory import give_back
from sidecar.metrics import (
    Collector,
    JobCounts,
    MetricsServer,
    StatisticsCounts,
    StorageCounts,
)
from sidecar.monitor import (
    EvidenceBook,
    FeatureStatus,
    IngestCounts,
    LayerActivations,
    LayerStatus,
    Monitor,
    Operations,
    live_contexts,
)
from sidecar.store import (
    ArtifactStore,
    BaselineStore,
    Catalogue,
    Database,
    EvidenceStore,
    Recorder,
    RecorderCounts,
    Recordings,
    References,
    RemoteShelf,
    Snapshots,
    secret_key,
)
from sidecar.web import WebServer, create_app

HOUSEKEEPING_SECONDS = 0.2
"""How often the audit log is written; what kill -9 may take from it."""

STALL_SECONDS = 5.0
"""A writer that has not turned for this long is stuck: /livez says so and the daemon is restarted."""

DRAIN_SECONDS = 5.0
"""Time for the queue to empty at a stop, well inside Kubernetes' 30 s grace period."""

COLLECT_SECONDS = 60.0
"""How often the artifact store is brought below its limit, and unused memory given back."""

SECONDS_A_DAY = 86_400.0
"""The unit of store.artifact_max_age_days."""

PATIENCE_SECONDS = 5.0
"""Pause of a duty after the disk refused it: asking faster would only fill the log."""


class Storage:
    """Everything below ``state_dir``.

    Attributes:
        artifacts: Pictures, manifests and baselines by sha256.
        baselines: Versions of baselines.
        references: Which artifacts must stay, and why.
        catalogue: Flags and audit log.
        database: The SQLite file behind the catalogue, the evidence and the job table.
        evidence: Why features fired.
        evidence_key: Secret of hashed request ids.
        snapshots: The monitor's state.
        recorder: Takes the closed windows of flagged features; None where nothing is recorded.
    """

    def __init__(self, config: SidecarConfig) -> None:
        """Open the state directory, creating what is missing.

        Raises:
            ConfigError: It cannot be created or written, or another daemon uses it.
            StorageError: What is in it cannot be used.
        """
        root = config.state_dir
        self.snapshot_at = 0.0
        self.snapshot_failures = 0
        with contextlib.ExitStack() as undo:
            undo.callback(_claim(root).close)
            self.database = Database(root / "sidecar.sqlite3")
            undo.callback(self.database.close)
            self.catalogue = Catalogue(self.database)
            self.evidence = EvidenceStore(self.database, config.evidence.limit_bytes)
            self.evidence_key = secret_key(root / "evidence.key")
            self.artifacts = ArtifactStore(_place(config), config.store.artifact_limit_bytes)
            self.references = References(self.database)
            self.baselines = BaselineStore(
                self.database, self.artifacts, keep=self.references.digests
            )
            self.snapshots = Snapshots(root / "snapshots", "monitor")
            self.recorder = _recorder(config)
            self._open = undo.pop_all()

    def close(self) -> None:
        """Close the database, and let another daemon have the folder; again does nothing."""
        self._open.close()


def _place(config: SidecarConfig) -> Path | RemoteShelf:
    """Return where artifacts are kept."""
    wanted, root = config.store, config.state_dir
    if "://" not in wanted.artifacts:
        return Path(wanted.artifacts or root / "artifacts")
    return RemoteShelf(wanted.artifacts, root / "artifact-cache", wanted.artifact_cache_bytes)


def _recorder(config: SidecarConfig) -> Recorder | None:
    wanted = config.recording
    if not wanted.limit_bytes:
        return None
    root = config.state_dir / "recordings"
    return Recorder(
        Recordings(root, limit_bytes=wanted.limit_bytes, segment_bytes=wanted.segment_bytes)
    )


def _claim(root: Path) -> BinaryIO:
    """Return the lock file of a state directory, locked for as long as it is open.

    Two daemons would overwrite each other's snapshots and run each other's jobs. The kernel lets go
    of the lock when the process ends, however it does.

    Raises:
        ConfigError: The directory cannot be written, or another daemon holds the lock.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / "lock").open("wb")
    except OSError as error:
        raise ConfigError(
            f"state_dir {root}: cannot be written ({error.strerror}): mend it or choose another"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        taken = isinstance(error, BlockingIOError)
        why = (
            "another daemon uses it: stop that one"
            if taken
            else f"no lock ({error.strerror}): mend it"
        )
        raise ConfigError(f"state_dir {root}: {why} or choose another") from error
    return file


class Daemon:
    """One sidecar; ``start`` and ``stop`` run on the event loop that serves gRPC."""

    def __init__(
        self,
        config: SidecarConfig,
        *,
        clock: Callable[[], float] = time.time,
        load_kernels: Callable[[], Loops] | None = load_compiled,
    ) -> None:
        """Build every part; nothing listens before ``start``.

        Args:
            config: Checked configuration.
            clock: Returns Unix seconds.
            load_kernels: Returns compiled kernels, once a child has compiled them; None: numpy counts.

        Raises:
            ConfigError: The state directory cannot be used.
            StorageError: What is in it cannot be used.
        """
        self.config, self._clock, self._load_kernels = config, clock, load_kernels
        self.storage = Storage(config)
        with contextlib.ExitStack() as undo:
            undo.callback(self.storage.close)
            self._build()
            undo.pop_all()

    def _build(self) -> None:
        config, clock = self.config, self._clock
        self.monitor = Monitor(
            config.statistics,
            config.spike,
            now=clock(),
            activation_limit=config.metrics.flagged_limit,
            screen=config.screen,
            evidence=EvidenceBook(config.evidence, key=self.storage.evidence_key),
            on_window=self.storage.recorder.take if self.storage.recorder else None,
            levels=config.recording.levels if self.storage.recorder else (),
        )
        self._restore()
        self.compilation = Compilation(
            config.state_dir / "compiled",
            self._use,
            load=self._load_kernels or load_compiled,
        )
        self.ledger = Ledger(
            queue_limit_bytes=config.ingest.queue_bytes, sampling_rate=config.ingest.sampling_rate
        )
        self.queue = JobQueue(
            self.storage.database,
            queue_limit=config.jobs.queue_limit,
            lease_seconds=config.jobs.lease_seconds,
            attempt_limit=config.jobs.attempt_limit,
            quarantine_seconds=config.jobs.quarantine_seconds,
            model_limits={model.name: model.jobs for model in config.models},
        )
        self.index = ArtifactIndex(self.storage.database)
        age = config.store.artifact_max_age_days
        dictionaries = Dictionaries(config.dictionaries)
        self.runner = Runner(
            self.queue,
            self.storage.artifacts,
            config.model,
            config.jobs,
            config.state_dir / "scratch",
            partial(live_contexts, self.monitor),
            self.index,
            self.storage.references,
            max_age_seconds=age * SECONDS_A_DAY if age is not None else None,
            datasets=Datasets(config.datasets),
            dictionaries=dictionaries,
        )
        self.storage.references.also(self.queue.kept_digests)
        self.operations = Operations(
            config,
            monitor=self.monitor,
            catalogue=self.storage.catalogue,
            evidence=self.storage.evidence,
            artifacts=self.storage.artifacts,
            queue=self.queue,
            runner=self.runner,
            baselines=self.storage.baselines,
            index=self.index,
            references=self.storage.references,
            dictionaries=dictionaries,
            clock=clock,
        )
        tools = Tools(
            config, self.operations, self.queue, self.storage.artifacts, self.storage.references
        )
        self.audits = NightlyAudits(tools, clock=clock)
        self.pipeline = Pipeline(
            self.monitor,
            self.ledger,
            config.ingest,
            clock=clock,
            on_events=self.operations.record,
        )
        destination = Destination(config, self.monitor, self.pipeline, self.ledger, clock)
        self.grpc = GrpcServer(destination, self.operations, self.audits)
        self.lane = LaneServer(destination)
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._flush_after = self._baselines_after = -math.inf
        self._housekeeper = threading.Thread(
            target=self._keep_house, name="sidecar-housekeeping", daemon=True
        )
        self.metrics: MetricsServer | None = None
        self.web: WebServer | None = None

    def _use(self, loops: Loops) -> None:
        self.monitor.use(loops.dense)
        self.monitor.use_sparse(loops.sparse)

    def _restore(self) -> None:
        """Become what the newest usable snapshot saw; one that is not usable is set aside."""
        found = self.storage.snapshots.load(
            lambda saved: self.monitor.restore(saved, self._clock())
        )
        if found is not None:
            structlog.get_logger().info("state_restored", layers=len(self.monitor.select()))

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen and run. Whatever is raised, nothing of the daemon runs or listens then.

        Raises:
            ConfigError: One or more addresses cannot be used; all are named.
            StorageError: The job table cannot be read or written.
        """
        try:
            await self._listen()
            self.runner.start()
            self.audits.start_thread()
            self.pipeline.start()
            self._housekeeper.start()
        except BaseException:
            await self.stop(0)
            raise
        self._ready.set()
        # Last, so that being ready waits for none of it.
        if self._load_kernels is not None:
            self.compilation.start()
        structlog.get_logger().info(
            "daemon_started",
            version=sidecar.__version__,
            grpc=list(self.grpc.addresses),
            lane=list(self.lane.addresses),
            metrics=self.metrics_url,
            console=self.console_url,
        )

    async def _listen(self) -> None:
        problems: list[str] = []
        for listen in (self._start_metrics, self._start_web, self.lane.start, self.grpc.start):
            try:
                outcome = listen()
                if asyncio.iscoroutine(outcome):
                    await outcome
            except ConfigError as error:
                problems.append(error.message)
        if problems:
            raise ConfigError("\n".join(problems))

    def _start_metrics(self) -> None:
        collector = Collector(
            _Source(self),
            version=sidecar.__version__,
            config_digest=config_digest(self.config),
            flagged_limit=self.config.metrics.flagged_limit,
            series_limit=self.config.metrics.series_limit,
            classic_buckets=self.config.metrics.classic_buckets,
            anomalies_limit=self.config.metrics.anomalies_limit,
        )
        address = self.config.listen.metrics
        server = MetricsServer(address, collector, live=self.why_dead, ready=self.why_not_ready)
        server.start()
        self.metrics = server

    def _start_web(self) -> None:
        address = self.config.listen.web
        host, _, port = address.rpartition(":")
        app = create_app(
            self.operations,
            console_url=self.config.alerts.console_url or f"http://{address}",
            clock=self._clock,
            audits=self.audits,
        )
        server = WebServer(app, host, int(port))
        server.start()
        self.web = server

    async def stop(self, grace: float = DRAIN_SECONDS) -> None:
        """Turn away new work, write what is queued, save the state, close; again does nothing.

        Args:
            grace: Seconds for open calls, the queue, and running jobs, each.
        """
        served = self._ready.is_set()
        self._ready.clear()
        # Beside each other: the lane waits for its threads, which the event loop must not.
        await asyncio.gather(self.grpc.stop(grace), asyncio.to_thread(self.lane.stop))
        self._stopping.set()
        await asyncio.to_thread(self._wind_down, grace, served)
        structlog.get_logger().info("daemon_stopped")

    def _wind_down(self, grace: float, served: bool) -> None:
        self.compilation.stop(grace)
        self.pipeline.stop(grace)
        self.audits.stop(grace)
        self.runner.stop(grace)
        if self._housekeeper.is_alive():
            self._housekeeper.join(grace)
        if served:
            self._tried("evidence_failed", self.operations.save_evidence)
            self._save()
            self._flush()
            if self.storage.recorder is not None:
                self._tried("recording_failed", self.storage.recorder.close)
        for server in (self.web, self.metrics):
            if server is not None:
                server.stop()
        self.storage.close()

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop; a second signal ends at once."""
        await self.start()
        loop = asyncio.get_running_loop()
        wanted = asyncio.Event()

        def ask() -> None:
            if wanted.is_set():
                os._exit(1)
            wanted.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask)
        try:
            await wanted.wait()
        finally:
            await self.stop()

    # -- housekeeping -------------------------------------------------------------------------

    def _keep_house(self) -> None:
        save_at = self._clock() + self.config.store.snapshot_seconds
        collect_at = self._clock() + COLLECT_SECONDS
        changes = self.operations.changes
        while not self._stopping.wait(HOUSEKEEPING_SECONDS):
            now = self._clock()
            # A change of state is saved at once, and before it is told: a restart tells it no twice.
            changed = self.operations.changes != changes and time.monotonic() >= self._flush_after
            if changed or not save_at - self.config.store.snapshot_seconds <= now < save_at:
                changes = self.operations.changes
                self._tried("evidence_failed", self.operations.save_evidence)
                self._save()
                save_at = now + self.config.store.snapshot_seconds
            if time.monotonic() >= self._flush_after:
                self._flush()
            self._keep_baselines()
            if self.storage.recorder is not None:
                self._tried("recording_failed", self.storage.recorder.drain)
            if not collect_at - COLLECT_SECONDS <= now < collect_at:
                self._tried("artifact_collection_failed", self.operations.provenance.collect)
                self._tried("evidence_not_expired", self.operations.expire_evidence)
                self._tried("memory_not_given_back", give_back)
                self._tried("flags_not_checked", self.operations.warn_unmatched)
                collect_at = now + COLLECT_SECONDS

    def _save(self) -> None:
        if self._tried(
            "snapshot_failed", lambda: self.storage.snapshots.save(self.monitor.encode())
        ):
            self.storage.snapshot_at = self._clock()
        else:
            self.storage.snapshot_failures += 1

    def _flush(self) -> None:
        if not self._tried("audit_log_failed", self.operations.flush_events):
            self._flush_after = time.monotonic() + PATIENCE_SECONDS

    def _keep_baselines(self) -> None:
        if time.monotonic() >= self._baselines_after and not self._tried(
            "baseline_not_stored", self.operations.keep_baselines
        ):
            self._baselines_after = time.monotonic() + PATIENCE_SECONDS

    def _tried(self, failure: str, work: Callable[[], object]) -> bool:
        """Do one duty of the house and say whether it succeeded; whatever fails, the others go on."""
        try:
            work()
        except SidecarError as error:
            structlog.get_logger().warning(failure, error=str(error))
        except Exception:  # noqa: BLE001 - rule 1: after start-up nothing may end this thread
            structlog.get_logger().exception(failure)
        else:
            return True
        return False

    # -- health -------------------------------------------------------------------------------

    def why_dead(self) -> Sequence[str]:
        """Return why the daemon should be restarted; empty while it is alive."""
        if not self._ready.is_set():
            return []
        silent = self.pipeline.silent_seconds
        reasons = (
            [f"the writer has not turned for {silent:.1f} s"] if silent > STALL_SECONDS else []
        )
        if not self.lane.alive:
            reasons.append("nobody takes connections on the lane any more")
        if not self._housekeeper.is_alive():
            reasons.append("nobody saves snapshots any more")
        if not self.runner.alive:
            reasons.append("nobody runs jobs any more")
        if not self.audits.alive:
            reasons.append("nobody looks after audits any more")
        return reasons

    def why_not_ready(self) -> Sequence[str]:
        """Return why the daemon takes no traffic; empty when it does. Overload is no reason."""
        return [] if self._ready.is_set() else ["starting or stopping"]

    @property
    def metrics_url(self) -> str:
        """Where /metrics, /livez and /readyz are."""
        return self.metrics.url if self.metrics else ""

    @property
    def console_url(self) -> str:
        """Where the console is on this machine."""
        host = self.config.listen.web.rpartition(":")[0]
        return f"http://{host}:{self.web.port}" if self.web else ""


class _Source:
    """What a scrape reads."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def features(self) -> Sequence[FeatureStatus]:
        return self._daemon.operations.watched()

    def layers(self) -> Sequence[LayerStatus]:
        return self._daemon.monitor.layers()

    def activations(self) -> Sequence[LayerActivations]:
        return self._daemon.monitor.activations()

    def unmatched_flags(self) -> Sequence[str]:
        return self._daemon.operations.unmatched_flags()

    def ingest(self) -> IngestCounts:
        return self._daemon.ledger.counts()

    def jobs(self) -> JobCounts:
        counts = self._daemon.queue.counts()
        timed, seconds = self._daemon.runner.timings()
        return JobCounts(
            {str(state): counts.get(state, 0) for state in JobState},
            timed,
            seconds,
            self._daemon.queue.quarantine.total,
            self._daemon.runner.admission.counts,
            room.free_bytes if (room := self._daemon.runner.admission.room) else math.nan,
        )

    def audits(self) -> Sequence[AuditStatus]:
        return self._daemon.audits.statuses()

    def statistics(self) -> StatisticsCounts:
        compilation, memory = self._daemon.compilation, self._daemon.monitor.memory()
        return StatisticsCounts(
            kernels=compilation.kernels,
            kernels_failed=compilation.failed,
            memory_bytes=memory.used_bytes,
            memory_limit_bytes=memory.limit_bytes,
            expected_false_alarms=self._daemon.config.spike.false_alarms_per_1000_days,
        )

    def storage(self) -> StorageCounts:
        storage, config = self._daemon.storage, self._daemon.config
        recorded = storage.recorder.counts() if storage.recorder else RecorderCounts()
        return StorageCounts(
            artifact_bytes=storage.artifacts.used_bytes,
            artifacts=storage.artifacts.number,
            artifacts_removed=storage.artifacts.removed,
            artifact_limit_bytes=config.store.artifact_limit_bytes,
            snapshot_at=storage.snapshot_at,
            snapshot_interval_seconds=config.store.snapshot_seconds,
            snapshot_failures=storage.snapshot_failures,
            quarantined=sum(
                kept.quarantined
                for kept in (storage.snapshots, storage.database, storage.artifacts)
            ),
            evidence=self._daemon.monitor.evidence_counts(),
            recording_bytes=recorded.used_bytes,
            recording_limit_bytes=recorded.limit_bytes,
            windows_recorded=recorded.recorded,
            windows_dropped=recorded.dropped,
        )


def config_digest(config: SidecarConfig) -> str:
    """Return the sha256 of the effective configuration, for comparing replicas."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def serve(config: SidecarConfig) -> None:
    """Run a daemon until it is told to stop.

    Raises:
        ConfigError: It cannot start; every reason is listed.
        StorageError: What is in the state directory cannot be used.
    """
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(config))


async def _serve(config: SidecarConfig) -> None:
    await Daemon(config).run()
