"""What the commands say of features and layers, against a real daemon with real traffic."""

import json
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.cli.features import _row
from sidecar.cli.standing import _numbers
from sidecar.features import Capture, LayerSample, Request, Slice
from sidecar.testing import FakeClock, RunningDaemon, running_daemon
from sidecar.wire.v1 import features_pb2, features_pb2_grpc
from tests.ingest.conftest import LAYER, REVISION

pytestmark = pytest.mark.service

WIDTH, REQUESTS, WINDOW = 64, 64, 10.0
SETTINGS = {
    "models": [{"name": "tiny"}],
    "flags": [
        {"feature": "tiny/conv/channel/1", "name": "edges", "owner": "vision"},
        {"feature": "tiny/conv/channel/2", "name": "dark", "direction": "below"},
        {
            "feature": "tiny/conv/channel/3",
            "name": "either",
            "direction": "both",
            "slice": {"route": "eu"},
            "detectors": ["spike", "drift"],
            "factor": 4.0,
        },
        {"feature": "tiny/cnov/channel/1"},
    ],
    "statistics": {
        "warmup_rows": 64,
        "window_seconds": WINDOW,
        "baseline_min_requests": 5120,
        "baseline_min_seconds": 800,
    },
    "spike": {"quantile": 0.99},
    "screen": {"baseline_windows": 30},
    "alerts": {"console_url": "https://ops.example/sidecar/"},
}


class Standing:
    """A daemon whose baseline is frozen, in which features have moved for three windows.

    Channel 1, which is flagged, spikes, and 7 does, which is not.
    """

    def __init__(self, running: RunningDaemon, clock: FakeClock) -> None:
        self.running, self.clock, self.rng = running, clock, np.random.default_rng(5)
        running.daemon.monitor.register(LAYER, WIDTH, Capture("server 1", tap="hooks"), clock())
        self.windows(90)
        self.windows(3, [1, 7])

    def windows(self, count: int, moved: Sequence[int] = (), broken: Sequence[int] = ()) -> None:
        """Put windows of traffic into the statistics and have the detectors look at each."""
        for _ in range(count):
            values = self.rng.normal(size=(REQUESTS, WIDTH)).astype(np.float32)
            values[:, list(moved)] += 3
            values[:, list(broken)] = np.nan
            requests = tuple(Request(traffic=Slice.of({"route": "eu"})) for _ in range(REQUESTS))
            index = np.arange(REQUESTS, dtype=np.int32)
            self.running.daemon.monitor.apply(
                LayerSample(LAYER, values, index, requests), self.clock()
            )
            self.clock.advance(WINDOW)
            daemon = self.running.daemon
            daemon.operations.record(daemon.monitor.tick(self.clock()))
        daemon.operations.save_evidence()

    def run(self, *arguments: str) -> Result:
        """Run one command against the daemon."""
        return CliRunner().invoke(main, [*arguments, "--address", self.running.grpc])


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """One for all questions; who changes something puts it back."""
    clock = FakeClock(time.time())
    with running_daemon(tmp_path_factory.mktemp("standing"), SETTINGS, clock=clock) as running:
        yield Standing(running, clock)


def told(found: Result) -> str:
    """Return what a command printed, with the lines that were wrapped as one."""
    assert 0 == found.exit_code, found.output
    return " ".join(found.stdout.split())


def test_the_list_says_what_holds_and_how_each_is_watched(standing: Standing) -> None:
    """Columns that no feature needs are left out; what is not calm says why below."""
    found = standing.run("feature", "list")
    header, *rows = [re.split(r" {2,}", line) for line in found.stdout.splitlines() if "  " in line]
    fired, below, both = (dict(zip(header, row, strict=True)) for row in rows)

    assert ["STATE", "FOR", "NAME", "NOW", "LEVEL", "TOLERATED"] == header[:6]
    assert "HOLDS" not in header
    assert ("firing", "edges", "-", "-", "vision") == tuple(
        fired[name] for name in ("STATE", "NAME", "SIDE", "SLICE", "OWNER")
    )
    assert ("normal", "below", "-") == (below["STATE"], below["SIDE"], below["ASKED FOR"])
    assert ("both", "route=eu", "spike,drift") == tuple(
        both[name] for name in ("SIDE", "SLICE", "ASKED FOR")
    )
    assert "edges: 43 of 128 requests beyond the baseline's 99 % quantile" in found.stdout


def test_the_list_ends_with_flags_that_fit_nothing(standing: Standing) -> None:
    """Beside the data, so that neither a table nor JSON is spoiled."""
    table, plain = standing.run("feature", "list"), standing.run("feature", "list", "-o", "json")

    for found in (table, plain):
        assert "1 flag fits no feature" in found.stderr
        assert "tiny/cnov/channel/1: no hook has registered layer 'cnov'; the nearest: 'conv'" in (
            found.stderr
        )
    assert 3 == len(json.loads(plain.stdout))


def test_json_has_every_number_and_leaves_out_what_is_not_known(standing: Standing) -> None:
    """A number that is not known is no 0."""
    fired, below, both = json.loads(standing.run("feature", "list", "-o", "json").stdout)

    for name in ("level_ratio", "tolerated_ratio", "spike_evidence_log10", "last", "threshold"):
        assert isinstance(fired[name], float), name
    assert ("above", "", ["spike", "conditions", "drift"], "1") == (
        fired["direction"],
        fired["slice"],
        fired["detectors"],
        fired["spikes"],
    )
    assert ["SidecarFeatureSpike"] == fired["alerts"]
    assert fired["page"].startswith("https://ops.example/sidecar/f/tiny@")
    assert not {"low_threshold", "least", "factor", "drift_js"} & set(fired)
    assert {"low_threshold", "last"} <= set(below)
    assert ("both", "route=eu", 4.0) == (both["direction"], both["slice"], both["factor"])


def test_a_page_says_state_numbers_steps_and_links(standing: Standing) -> None:
    """What somebody needs who was woken by it."""
    page = told(standing.run("feature", "get", "tiny/conv/channel/1"))
    record = json.loads(
        standing.run("feature", "evidence", "tiny/conv/channel/1", "-o", "json").stdout
    )

    for part in (
        "state firing for",
        "flag warning, owner vision",
        "watched above its baseline, on all requests",
        "why 43 of 128 requests beyond the baseline's 99 % quantile",
        "numbers exceeding 71.1% of 128 requests; above 2.5",
        "when it fired; an alarm takes 10^7.4",
        "it fired 1 time",
        f"evidence {record[0]['id']}, fired ",
        "All 64 requests have route=eu",
        "/runbooks/SidecarFeatureSpike",
        "sidecar feature evidence tiny@abababababab/conv/channel/1",
        "links page https://ops.example/sidecar/f/tiny@",
        "/conv/channel/1/evidence",
    ):
        assert part in page, part


def test_a_page_says_how_a_feature_is_watched(standing: Standing) -> None:
    """Both thresholds, the slice, what was asked for, and its own factor."""
    page = told(standing.run("feature", "get", "tiny/conv/channel/3"))

    assert (
        "watched above and below its baseline, on requests of route=eu, for spike and drift alone, "
        "from 4 times its level"
    ) in page
    assert "or below -2.5" in page
    assert "what to do nothing now" in page


def test_an_unflagged_feature_that_stands_out_can_be_flagged_from_its_page(
    standing: Standing,
) -> None:
    """The screen's numbers, and the one command; then it is watched and no finding any more."""
    page = told(standing.run("feature", "get", "tiny/conv/channel/7"))
    command = page.partition("be told of it: sidecar ")[2].split(" links")[0].split()
    flagged = standing.run(*command)
    after = told(standing.run("layer", "get", "conv", "--model", "tiny"))
    standing.run("feature", "unflag", command[-1])

    assert "Not flagged, but the screen finds it: 47 of 64 requests are beyond" in page
    assert "screen 59.7 times its baseline's 1.23%: p 1.0e-23, q 3.3e-22 in 3 windows since" in page
    assert 0 == flagged.exit_code
    assert "unflagged none of these stands out" in after


def test_layers_are_listed_and_say_which_unflagged_features_stand_out(standing: Standing) -> None:
    """The screen's findings have numbers, and a command to paste."""
    table = standing.run("layer", "list")
    page = told(standing.run("layer", "get", "conv"))
    (layer,) = json.loads(
        standing.run("layer", "get", "conv", "--model", "tiny", "-o", "json").stdout
    )
    missing = standing.run("layer", "get", "fc")

    assert "2 of 64" in table.stdout
    assert "sidecar layer get LAYER" in table.stderr
    assert "screen 2 of 64 features exceed more often than the baseline explains" in page
    assert "sidecar feature flag tiny@abababababab/conv/channel/7" in page
    assert [f"tiny@{REVISION}/conv/channel/7"] == [one["key"] for one in layer["anomalies"]]
    assert ("server 1", "hooks", 3) == (
        layer["capture"]["server"],
        layer["capture"]["tap"],
        layer["anomalies"][0]["windows"],
    )
    assert 3 == missing.exit_code
    assert "no hook has registered a layer 'fc'" in missing.stderr


def test_every_face_names_the_same_finding(standing: Standing) -> None:
    """A scrape, the API and the command line are read from one list."""
    running = standing.running
    command = ("layer", "get", "conv", "--model", "tiny", "-o", "json")
    (layer,) = json.loads(standing.run(*command).stdout)
    with urllib.request.urlopen(f"{running.console_url}/api/v1/layers", timeout=5) as answer:
        served = next(one for one in json.load(answer)["layers"] if one["model"] == "tiny")
    with urllib.request.urlopen(f"{running.metrics_url}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()

    (found,) = layer["anomalies"]
    (same,) = served["anomalies"]
    (series,) = [line for line in lines if line.startswith("sidecar_anomaly_factor{")]
    assert (found["key"], found["factor"]) == (same["key"], same["factor"])
    assert {'layer="conv"', 'kind="channel"', 'feature="7"'} <= set(
        re.findall(r'\w+="\w+"', series)
    )
    assert found["factor"] == pytest.approx(float(series.split()[-1]))


def test_layers_come_in_pages(standing: Standing) -> None:
    """However many there are, an answer is bounded; a token that was not given out is refused."""
    monitor = standing.running.daemon.monitor
    monitor.register(replace(LAYER, model="other"), 3, Capture(), standing.clock())
    with grpc.insecure_channel(standing.running.grpc) as channel:
        stub = features_pb2_grpc.FeatureServiceStub(channel)
        first = stub.ListLayers(features_pb2.ListLayersRequest(page_size=1))
        second = stub.ListLayers(
            features_pb2.ListLayersRequest(page_size=1, page_token=first.next_page_token)
        )
        other = stub.ListLayers(features_pb2.ListLayersRequest(model="other"))
        with pytest.raises(grpc.RpcError, match="page_token 'x' is not one"):
            stub.ListLayers(features_pb2.ListLayersRequest(page_token="x"))  # noqa: S106 - no secret

    assert (2, 2, 1) == (first.total, second.total, other.total)
    assert ("other", "tiny") == (first.layers[0].model, second.layers[0].model)
    assert "" == second.next_page_token
    assert 3 == other.layers[0].width


def test_check_config_compares_flags_with_a_running_daemon(
    standing: Standing, tmp_path: Path
) -> None:
    """Before a file is used: which of its flags would watch nothing."""
    path = tmp_path / "sidecar.yaml"
    names = ("conv/channel/63", "conv/channel/64", "conv/neuron/1")
    flags = [{"feature": f"tiny/{name}"} for name in names]
    path.write_text(yaml.safe_dump({"models": [{"name": "tiny"}], "flags": flags}))

    command = ["check", "config", "--config", str(path)]
    alone = CliRunner().invoke(main, command)
    compared = CliRunner().invoke(main, [*command, "--daemon", standing.running.grpc])

    assert (0, 2) == (alone.exit_code, compared.exit_code)
    assert "2 of 3 flags fit no feature" in compared.stderr
    assert "flags.1: tiny/conv/channel/64: index 64 is not in the layer: use 0 to 63" in (
        compared.stderr
    )
    assert "flags.2: tiny/conv/neuron/1: no hook has registered kind 'neuron'" in compared.stderr


def test_what_is_certain_leads_the_page(tmp_path: Path) -> None:
    """A feature that gives NaN is not calm, whatever the spike test says."""
    clock = FakeClock(time.time())
    with running_daemon(tmp_path, SETTINGS, clock=clock) as running:
        broken = Standing(running, clock)
        broken.windows(1, broken=[2])
        table = broken.run("feature", "list").stdout
        page = told(broken.run("feature", "get", "tiny/conv/channel/2"))
        (found,) = [
            one
            for one in json.loads(broken.run("feature", "list", "-o", "json").stdout)
            if one["name"] == "dark"
        ]

    assert "HOLDS" in table
    assert "dark: it gives NaN or infinite values\n" in table
    assert "no spike" in table
    assert "holds nonfinite: it gives NaN or infinite values" in page
    assert "sidecar job run" not in page  # no picture says why
    assert "It gives NaN or infinities" in page
    assert "/runbooks/SidecarNonFinite" in page
    assert (["nonfinite"], ["SidecarNonFinite"]) == (found["conditions"], found["alerts"])


def test_a_rate_that_is_still_learned_is_no_share_of_zero() -> None:
    """A flag with a threshold and without a rate of its own yet: 0 % would look like a quiet feature."""
    learning = features_pb2.Feature(key=str(LAYER.feature(2)), flagged=True, threshold=2.0)
    learned = features_pb2.Feature()
    learned.CopyFrom(learning)
    learned.tolerated_ratio, learned.baseline_exceedance_ratio = 0.15, 0.1

    assert "10%" in _row(learned)
    assert not [cell for cell in _row(learning) if cell.endswith("%")]


def test_what_speaks_against_a_rate_is_a_line_of_its_own() -> None:
    """As long as it may be: it is folded like the rest."""
    doubted = features_pb2.Feature(threshold=2.0, caution="learned in a spike")

    (line,) = (one for one in _numbers(doubted, None) if one.startswith("caution"))
    assert ["caution", "learned in a spike"] == line.split(maxsplit=1)
    assert not [
        line for line in _numbers(features_pb2.Feature(threshold=2.0), None) if "caut" in line
    ]
