"""The command line against a real daemon, and what it refuses."""

import dataclasses
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from sidecar.cli import main
from sidecar.detect import Attribution, LeftOut, SliceCount
from sidecar.features import FeatureKey
from sidecar.monitor import EvidenceRecord, EvidenceRow, Exposure
from sidecar.testing import RunningDaemon, running_daemon, wait_until
from tests.ingest.conftest import REVISION, GrpcClient

pytestmark = pytest.mark.service

KEY = f"tiny@{REVISION}/conv/channel/2"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon with one layer of four channels and some traffic."""
    settings = {
        "models": [{"name": "tiny"}],
        "flags": [{"feature": "tiny/conv/channel/1", "name": "edges", "owner": "vision"}],
        "statistics": {"warmup_rows": 8},
    }
    with running_daemon(tmp_path_factory.mktemp("cli"), settings) as found:
        client = GrpcClient(found.grpc)
        client.hello()
        rows = np.random.default_rng(0).normal(size=(200, 4))
        client.read_until_settled(client.batch(rows))
        client.close()
        yield found


def run(running: RunningDaemon, *arguments: str) -> Result:
    """Run one command against the daemon."""
    return CliRunner().invoke(main, [*arguments, "--address", running.grpc])


def test_help_imports_nothing_heavy() -> None:
    """``sidecar --help`` is there at once: it loads neither gRPC nor the daemon."""
    code = (
        "import sys\nfrom sidecar.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'grpc', 'torch', 'numpy', 'pydantic', 'uvicorn', 'structlog'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "HEAVY []" in found.stdout
    for command in ("serve", "check", "feature", "baseline", "job", "artifact", "rules"):
        assert f"  {command} " in found.stdout


def test_the_flagged_features_are_listed_as_a_table_and_as_json(running: RunningDaemon) -> None:
    """Both forms name the same features."""
    table = run(running, "feature", "list")
    listed = json.loads(run(running, "feature", "list", "-o", "json").output)

    assert 0 == table.exit_code
    assert "STATE" == table.output.split()[0]
    assert "edges" in table.output
    assert [f"tiny@{REVISION}/conv/channel/1"] == [item["key"] for item in listed]


def test_all_features_are_listed_when_asked(running: RunningDaemon) -> None:
    """Unflagged features have a distribution too."""
    listed = json.loads(run(running, "feature", "list", "--all", "-o", "json").output)

    assert [1, 0, 2, 3] == [item["index"] for item in listed]


def test_a_feature_is_described_with_its_distribution(running: RunningDaemon) -> None:
    """One command says how the feature stands and draws what it does."""
    found = run(running, "feature", "get", "tiny/conv/channel/2")

    assert 0 == found.exit_code
    assert KEY in found.output
    assert "current: n 200, mean" in found.output
    assert "p50" in found.output
    assert "####" in found.output


def test_evidence_is_shown_and_its_absence_said(running: RunningDaemon) -> None:
    """Why a feature fired: words, slices and rows; exit code 3 where it never did."""
    left = LeftOut(SliceCount("route", "/eu", 60, 41), 0.005, 0.94, gone=True, telling=True)
    row = EvidenceRow(math.inf, 1e9, "user-1", 3, "route=/eu")
    record = EvidenceRecord(
        feature=FeatureKey.parse(KEY),
        at=time.time(),
        reason="41 of 64 requests",
        numbers={"short_rate": 0.4, "long_rate": math.nan},
        above=4.7,
        below=-math.inf,
        since=1e9,
        windows=2,
        requests=640,
        exceedances=44,
        uncounted=0,
        attribution=Attribution("Without route=/eu it is gone.", "route=/eu", 0.94, (left,)),
        rows=(row,),
        exposure=Exposure.KEEP,
    )
    none = run(running, "feature", "evidence", KEY)
    bare = dataclasses.replace(record, rows=(), exposure=Exposure.NONE, at=record.at - 60)
    for one in (bare, record):
        running.daemon.storage.evidence.add(one.id, KEY, one.at, one.exposure, one.encode())
    found = run(running, "feature", "evidence", "tiny/conv/channel/2")
    both = run(running, "feature", "evidence", KEY, "--limit", "2")
    listed = json.loads(run(running, "feature", "evidence", KEY, "-o", "json").output)

    assert (3, 0) == (none.exit_code, found.exit_code)
    assert "has no evidence" in none.stderr
    for part in ("Without route=/eu", "44 of 640", "41 of 64", "user-1", "inf", "94%", record.id):
        assert part in found.output, part
    assert "rows       not kept: evidence.enabled is off" not in found.output
    assert "rows       not kept: evidence.enabled is off" in both.output
    assert [record.id] == [one["id"] for one in listed]
    assert ("NaN", "keep", "user-1") == (
        listed[0]["numbers"]["long_rate"],
        listed[0]["exposure"],
        listed[0]["rows"][0]["request_id"],
    )


def test_flag_and_unflag_change_what_is_listed(running: RunningDaemon) -> None:
    """A feature flagged by command is watched until it is unflagged."""
    flagged = run(running, "feature", "flag", KEY, "--name", "stripes", "--severity", "critical")
    between = run(running, "feature", "list").output
    unflagged = run(running, "feature", "unflag", KEY)
    after = run(running, "feature", "list").output

    assert [0, 0] == [flagged.exit_code, unflagged.exit_code]
    assert "stripes" in between
    assert "stripes" not in after


def test_how_a_feature_is_watched_is_set_by_command(running: RunningDaemon) -> None:
    """Over the wire and back, and what cannot be is refused in words."""
    said = ("--factor", "2.5", "--direction", "below", "--slice", "route=/eu")
    key = "tiny/conv/channel/1"
    flagged = run(running, "feature", "flag", key, *said, "--detector", "spike", "-o", "json")
    renamed = run(running, "feature", "flag", key, "--slice", "", "-o", "json")
    refused = run(running, "feature", "flag", key, "--slice", "eu")
    run(running, "feature", "unflag", key)

    found = json.loads(flagged.output)
    assert (2.5, "below", "route=/eu") == (found["factor"], found["direction"], found["slice"])
    assert ["spike"] == found["detectors"]
    again = json.loads(renamed.output)
    assert (2.5, "below", "") == (again["factor"], again["direction"], again.get("slice", ""))
    assert 0 != refused.exit_code
    assert "slice 'eu': use key=value pairs, joined by commas" in refused.stderr


def test_what_a_flag_leaves_out_stays_as_it_is(running: RunningDaemon) -> None:
    """A configured feature keeps its name and owner when only its severity is raised by hand."""
    key = "tiny/conv/channel/1"
    run(running, "feature", "flag", key, "--severity", "critical")
    raised = json.loads(run(running, "feature", "list", "-o", "json").output)[0]
    run(running, "feature", "flag", key)
    again = json.loads(run(running, "feature", "list", "-o", "json").output)[0]
    run(running, "feature", "unflag", key)

    for found in (raised, again):
        assert ("edges", "critical", "vision") == (
            found["name"],
            found["severity"],
            found["owner"],
        )


def test_a_flag_of_the_configuration_cannot_be_removed_by_command(running: RunningDaemon) -> None:
    """What a file says is changed in the file; exit code 4 is a conflict."""
    found = run(running, "feature", "unflag", "tiny/conv/channel/1")

    assert 4 == found.exit_code
    assert "flagged in the configuration" in found.stderr


def test_baselines_are_frozen_and_relearned_by_command(tmp_path: Path) -> None:
    """Both say how many layers they changed."""
    with running_daemon(tmp_path, {"models": [{"name": "tiny"}]}) as own:
        send(own)

        frozen = run(own, "baseline", "freeze", "tiny")
        relearned = run(own, "baseline", "relearn", "tiny", "--reason", "new lens")

    assert "1 layer: baseline frozen\n" == frozen.stdout
    assert "1 layer: baseline is learned anew\n" == relearned.stdout


def send(running: RunningDaemon) -> None:
    """Send some traffic and wait until it is counted."""
    client = GrpcClient(running.grpc)
    client.hello()
    client.read_until_settled(client.batch(np.ones((20, 4))))
    client.close()


def test_a_baseline_goes_from_one_daemon_to_another_by_file(tmp_path: Path) -> None:
    """List, export, import: the other daemon then lists the same digest as its own."""
    settings = {"models": [{"name": "tiny"}]}
    file = tmp_path / "conv.baseline"
    with (
        running_daemon(tmp_path / "a", settings) as first,
        running_daemon(tmp_path / "b", settings) as second,
    ):
        send(first)
        send(second)
        run(first, "baseline", "freeze", "tiny")
        wait_until(lambda: "*" in run(first, "baseline", "list").stdout)
        (version,) = json.loads(run(first, "baseline", "list", "-o", "json").stdout)
        exported = run(first, "baseline", "export", version["digest"][:8], "--to", str(file))
        imported = run(second, "baseline", "import", str(file))
        listed = run(second, "baseline", "list")
        refused = run(second, "baseline", "export", "feed", "--to", str(file))

    assert 0 == exported.exit_code
    assert f"is compared with baseline {version['digest'][:12]}" in imported.stdout
    assert "20 requests are few" in imported.stderr
    assert ["*", version["digest"][:12], "imported"] == listed.stdout.splitlines()[1].split()[:3]
    assert 2 == refused.exit_code
    assert "is no stored baseline" in refused.stderr


def test_a_file_that_is_no_baseline_is_refused(running: RunningDaemon, tmp_path: Path) -> None:
    """The answer says what would be one."""
    file = tmp_path / "x"
    file.write_text("hello")

    found = run(running, "baseline", "import", str(file))

    assert 2 == found.exit_code
    assert "no baseline file" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["feature", "get", "tiny/conv/channel/99"], 3, "SC403 feature index 99"),
        (["feature", "get", "tiny/fc/channel/0"], 3, "SC402"),
        (["feature", "get", "huge/fc/channel/0"], 3, "SC401"),
        (["feature", "get", "nonsense"], 2, "SC204"),
        (["job", "get", "nojob"], 3, "SC404"),
        (["artifact", "get", "0" * 64], 3, "SC405"),
        (["artifact", "get", "../../etc/passwd"], 3, "SC405"),
        (["job", "run", KEY], 2, "SC207 model 'tiny' has no factory"),
        (["job", "run", KEY, "--set", "stepz=3"], 2, "recipe.stepz is unknown"),
        (["baseline", "freeze", "huge"], 3, "SC402 model 'huge': no such layer"),
        (
            ["baseline", "freeze", "tiny", "--layer", "fc"],
            3,
            "SC402 model 'tiny' layer 'fc': no such layer",
        ),
    ],
)
def test_what_does_not_exist_is_said_with_its_code(
    running: RunningDaemon, arguments: list[str], exit_code: int, message: str
) -> None:
    """Every refusal has a stable code, a text that helps, and an exit code scripts can use."""
    found = run(running, *arguments)

    assert message in found.stderr
    assert exit_code == found.exit_code


def test_without_a_daemon_the_command_says_so() -> None:
    """No traceback, exit code 5, and what to do."""
    found = CliRunner().invoke(main, ["feature", "list", "--address", "127.0.0.1:9"])

    assert 5 == found.exit_code
    assert "no daemon answers at 127.0.0.1:9" in found.stderr


def test_check_config_lists_every_problem(tmp_path: Path) -> None:
    """The same list that serve would give, without starting anything."""
    path = tmp_path / "sidecar.yaml"
    path.write_text("spike: {factor: 0, quantil: 1}\nmodels: [{name: m, weights: none.pt}]\n")

    found = CliRunner().invoke(main, ["check", "config", "--config", str(path)])

    assert 2 == found.exit_code
    for part in ("spike.factor", "spike.quantil", "none.pt does not exist", "sidecar.yaml:1:"):
        assert part in found.stderr


def test_check_config_says_what_distributions_will_cost(tmp_path: Path) -> None:
    """Bytes of 1,000 features at each detail, and how many features fit into the budget."""
    path = tmp_path / "sidecar.yaml"
    path.write_text("statistics: {memory_bytes: 250000000, full_detail_ratio: 0.2}\n")

    found = CliRunner().invoke(main, ["check", "config", "--config", str(path)])

    assert 0 == found.exit_code
    lines = found.stdout.splitlines()[1:]
    details = [line for line in lines if "1,000 features" in line]
    assert ["full detail (4", "screened detail (3"] == [
        line.partition(" at ")[2].partition(" mantissa")[0] for line in details
    ]
    assert ["8.47 MB; 5,904 features fit", "1.67 MB; 150,060 features fit"] == [
        line.rpartition(": ")[2] for line in details
    ]
    assert "0.34 MB at most; 1,048,576 fit" in lines[-3]
    assert "317.11 MB, and where there are sparse layers 361.76 MB more" in lines[-2]


def test_check_config_says_how_many_rows_a_quantile_takes(tmp_path: Path) -> None:
    """A window that expects no exceeding request is no surprise after that."""
    path = tmp_path / "sidecar.yaml"
    path.write_text("spike: {quantile: 0.9999}\n")

    found = CliRunner().invoke(main, ["check", "config", "--config", str(path)])

    assert 0 == found.exit_code
    assert "spike.quantile 0.9999: one row in 10,000 is beyond it" in found.stdout


def test_serve_lists_every_port_that_is_taken_and_exits_2(tmp_path: Path) -> None:
    """Start-up finds all problems at once, and leaves nothing running."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [item.getsockname()[1] for item in taken]
    path = tmp_path / "sidecar.yaml"
    listen = {
        "grpc": [f"127.0.0.1:{ports[0]}"],
        "metrics": f"127.0.0.1:{ports[1]}",
        "web": f"127.0.0.1:{ports[2]}",
    }
    path.write_text(yaml.safe_dump({"listen": listen, "state_dir": "state"}))

    found = subprocess.run(
        [sys.executable, "-m", "sidecar", "serve", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for item in taken:
        item.close()

    assert 2 == found.returncode
    for key, port in zip(("grpc", "metrics", "web"), ports, strict=True):
        assert f"listen.{key}" in found.stderr
        assert f"127.0.0.1:{port}" in found.stderr
    assert "Traceback" not in found.stderr


def test_serve_says_when_the_state_directory_cannot_be_written(tmp_path: Path) -> None:
    """A path that is a file is a configuration error, not a crash."""
    (tmp_path / "state").write_text("a file")
    path = tmp_path / "sidecar.yaml"
    path.write_text("state_dir: state\n")

    found = subprocess.run(
        [sys.executable, "-m", "sidecar", "serve", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 2 == found.returncode
    assert "state_dir" in found.stderr
    assert "Traceback" not in found.stderr


def test_rules_are_rendered_with_the_addresses_asked_for() -> None:
    """The links in alerts lead to the console people use."""
    found = CliRunner().invoke(main, ["rules", "render", "--console-url", "http://ops.example:1"])

    rules = yaml.safe_load(found.output)
    assert 0 == found.exit_code
    assert "http://ops.example:1/f/" in found.output
    assert rules["groups"]


def test_an_artifact_for_an_unwritable_path_is_refused_by_name(
    running: RunningDaemon, tmp_path: Path
) -> None:
    """A full disk or a missing folder is said, not traced."""
    stored = running.daemon.storage.artifacts.put(b"picture", "image/png")

    target = tmp_path / "missing" / "picture.png"
    found = run(running, "artifact", "get", stored.digest, "--to", str(target))

    assert 1 == found.exit_code
    assert str(target) in found.stderr
    assert "No such file" in found.stderr
