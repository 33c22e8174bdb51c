"""Baselines that appear in the shared folder while a layer learns, and reading them beside the work."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from sidecar.config import SpikeConfig, StatisticsConfig
from sidecar.features import Capture, FeatureKind, LayerKey, LayerSample, Request, View
from sidecar.monitor import Event, Monitor
from sidecar.monitor.baselines import Baselines
from sidecar.monitor.shared import LOOK_SECONDS
from sidecar.stats import Bank
from sidecar.store import ArtifactStore, BaselineStore, Database, pack_baseline

pytestmark = pytest.mark.unit

WIDTH, START = 4, 1e9
LAYER, OTHER = (
    LayerKey("m", "a" * 64, name, FeatureKind.CHANNEL, View.MAX) for name in ("conv", "fc")
)
STATISTICS = StatisticsConfig(warmup_rows=16)


class Replica:
    """A monitor with its store of baselines, and the audit entries of both."""

    def __init__(self, state: Path, shared: Path | None = None) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.monitor = Monitor(STATISTICS, SpikeConfig(), now=START)
        self.told = list[Event]()
        store = BaselineStore(
            Database(state / "sidecar.sqlite3"), ArtifactStore(state / "artifacts", 1 << 30)
        )
        self.baselines = Baselines(
            self.monitor, store, shared=shared, quantile=0.999, record=self.told.extend
        )

    def feed(self, seed: int, layer: LayerKey = LAYER) -> None:
        """Register a layer and send it traffic."""
        self.monitor.register(layer, WIDTH, Capture(), START)
        values = np.random.default_rng(seed).normal(size=(400, WIDTH)).astype(np.float32)
        requests = tuple(Request(str(at)) for at in range(400))
        index = np.arange(400, dtype=np.int32)
        self.monitor.apply(LayerSample(layer, values, index, requests), START + 1)

    @property
    def kinds(self) -> list[str]:
        """What was told, in order."""
        return [event.what for event in self.told]

    @property
    def digest(self) -> str:
        """Of the baseline in force; empty: none."""
        return self.monitor.baseline_digests().get(LAYER, "")


def file_of(state: Path, seed: int, layer: LayerKey = LAYER) -> bytes:
    """Return a baseline's file as another replica exports it."""
    replica = Replica(state)
    replica.feed(seed, layer)
    replica.monitor.freeze([layer], START + 2)
    found = replica.monitor.baseline(layer)
    assert found is not None
    return pack_baseline(*found[:2])


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """An empty folder."""
    found = tmp_path / "shared"
    found.mkdir()
    return found


@pytest.fixture
def replica(tmp_path: Path, shared: Path) -> Replica:
    """A replica that has looked into the empty folder and learns."""
    found = Replica(tmp_path / "b", shared)
    found.feed(5)
    found.baselines.keep(START)
    return found


def test_what_is_published_later_is_taken_on_while_a_layer_learns(
    replica: Replica, shared: Path, tmp_path: Path
) -> None:
    """At the next look, not before, with an entry in the audit log."""
    (shared / "conv.baseline").write_bytes(file_of(tmp_path / "a", seed=1))

    replica.baselines.keep(START + LOOK_SECONDS - 1)
    early = replica.digest
    replica.baselines.keep(START + LOOK_SECONDS)

    assert "" == early
    assert replica.digest
    assert ["baseline_imported"] == replica.kinds
    assert "from conv.baseline" in replica.told[0].detail
    assert replica.monitor.layers()[0].baseline_frozen


def test_a_clock_that_was_put_back_does_not_put_off_the_look(
    replica: Replica, shared: Path, tmp_path: Path
) -> None:
    """It would last until the clock has caught up."""
    (shared / "conv.baseline").write_bytes(file_of(tmp_path / "a", seed=1))

    replica.baselines.keep(START - 86_400)

    assert ["baseline_imported"] == replica.kinds


def test_a_layer_that_froze_by_itself_keeps_its_own(
    replica: Replica, shared: Path, tmp_path: Path
) -> None:
    """Nothing changes a frozen baseline but a command."""
    replica.monitor.freeze([LAYER], START + 2)
    replica.baselines.keep(START + 3)
    own = replica.digest
    (shared / "conv.baseline").write_bytes(file_of(tmp_path / "a", seed=1))

    replica.baselines.keep(START + 10 * LOOK_SECONDS)

    assert own
    assert own == replica.digest
    assert [] == replica.kinds


def test_a_layer_that_learns_its_own_by_wish_is_left_alone(
    replica: Replica, shared: Path, tmp_path: Path
) -> None:
    """However often the folder is looked at."""
    replica.monitor.reset([LAYER], START + 2)
    (shared / "conv.baseline").write_bytes(file_of(tmp_path / "a", seed=1))

    replica.baselines.keep(START + 10 * LOOK_SECONDS)

    assert [] == replica.kinds


def test_what_does_not_fit_is_told_once_until_it_is_replaced(
    replica: Replica, shared: Path, tmp_path: Path
) -> None:
    """And what replaces it is taken on."""
    good = file_of(tmp_path / "a", seed=1)
    path = shared / "conv.baseline"
    other = Replica(tmp_path / "c")
    other.monitor.register(LAYER, WIDTH, Capture(dtype="float16"), START)
    other.feed(1)
    other.monitor.register(LAYER, WIDTH, Capture(dtype="float16"), START)
    other.monitor.freeze([LAYER], START + 2)
    found = other.monitor.baseline(LAYER)
    assert found is not None
    path.write_bytes(pack_baseline(*found[:2]))

    for look in range(1, 5):
        replica.baselines.keep(START + look * LOOK_SECONDS)
    refused = replica.kinds
    path.write_bytes(good)
    os.utime(path, ns=(1, 1))
    replica.baselines.keep(START + 6 * LOOK_SECONDS)

    assert ["baseline_refused"] == refused
    assert "dtype" in replica.told[0].detail
    assert ["baseline_refused", "baseline_imported"] == replica.kinds


def test_a_file_that_is_half_written_is_told_once_and_read_when_it_is_whole(
    replica: Replica, shared: Path, tmp_path: Path
) -> None:
    """Whoever publishes may take a while, and links may point nowhere."""
    content, path = file_of(tmp_path / "a", seed=1), shared / "conv.baseline"
    (shared / "gone.baseline").symlink_to(shared / "nowhere")
    path.write_bytes(content[: len(content) // 2])

    with capture_logs() as logs:
        for look in range(1, 4):
            replica.baselines.keep(START + look * LOOK_SECONDS)
    path.write_bytes(content)
    replica.baselines.keep(START + 4 * LOOK_SECONDS)

    names = sorted(Path(log["path"]).name for log in logs if log["event"] == "baseline_unreadable")
    assert ["conv.baseline", "gone.baseline"] == names
    assert ["baseline_imported"] == replica.kinds


def test_two_layers_and_a_folder_that_comes_later(tmp_path: Path) -> None:
    """Each takes on its own file; a folder that is not there yet is no fault."""
    folder = tmp_path / "later"
    replica = Replica(tmp_path / "b", folder)
    replica.feed(5)
    replica.feed(6, OTHER)
    replica.baselines.keep(START)
    folder.mkdir()
    (folder / "1.baseline").write_bytes(file_of(tmp_path / "a", 1))
    (folder / "2.baseline").write_bytes(file_of(tmp_path / "c", 1, OTHER))

    replica.baselines.keep(START + LOOK_SECONDS)

    assert [str(LAYER), str(OTHER)] == [event.subject for event in replica.told]
    assert {"baseline_imported"} == set(replica.kinds)


def while_reading(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[bool]:
    """Do some work in another thread while a baseline is read; return whether that came to an end."""
    ended, usual = list[bool](), Bank.reader

    def reader(bank: Bank, layer: LayerKey) -> Callable[[bytes], object]:
        read = usual(bank, layer)

        def reading(payload: bytes) -> object:
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            thread.join(5.0)
            ended.append(not thread.is_alive())
            return read(payload)

        return reading

    monkeypatch.setattr(Bank, "reader", reader)
    return ended


def test_nobody_waits_for_a_baseline_that_is_read(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading takes seconds for a wide layer: batches and scrapes go on meanwhile."""
    content = file_of(tmp_path / "a", seed=1)
    ended = while_reading(monkeypatch, lambda: (replica.feed(6), replica.monitor.layers()))

    version = replica.baselines.adopt(content, START + 3)

    assert [True] == ended
    assert replica.digest == version.stored.digest


def test_a_layer_that_freezes_while_a_shared_one_is_read_keeps_its_own(
    replica: Replica, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule holds to the last moment, and the audit log says what became of the file."""
    (shared / "conv.baseline").write_bytes(file_of(tmp_path / "a", seed=1))
    while_reading(monkeypatch, lambda: replica.monitor.freeze([LAYER], START + 2))

    replica.baselines.keep(START + LOOK_SECONDS)

    assert ["baseline_refused"] == replica.kinds
    assert "does not learn any more" in replica.told[0].detail
    found = replica.monitor.baseline(LAYER)
    assert found is not None
    assert "by command" == found[2]
