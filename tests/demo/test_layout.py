"""The configuration files of a run, read by the programs they are for."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from demo.layout import FOR_SECONDS, MARKER, Site
from demo.lite0 import BLOCKS, class_names
from demo.story import FLAGGED
from sidecar.config import load
from sidecar.metrics import render_rules

pytestmark = pytest.mark.service


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Prepare an empty folder."""
    return Site.prepare(tmp_path / "out")


@pytest.mark.parametrize("whole_way", [True, False])
def test_the_daemon_accepts_its_configuration(site: Site, *, whole_way: bool) -> None:
    """The file passes the daemon's own check; without Alertmanager the daemon acts by itself."""
    site.write(alertmanager=whole_way)
    config = load(site.folder / "sidecar.yaml")

    assert [one.selector for one in FLAGGED] == [flag.feature for flag in config.flags]
    assert config.alerts.direct is not whole_way
    assert "demo.lite0:build" == config.models[0].factory
    assert site.console == f"http://{config.listen.web}"
    assert [site.hooks] == config.listen.lane


def test_ports_are_distinct_and_left_free(site: Site) -> None:
    """Every address of a run has a port of its own."""
    urls = (site.console, site.server, site.prometheus, site.alertmanager, f"//{site.metrics}")
    ports = [urlsplit(url).port for url in urls]

    assert 5 == len(set(ports))
    assert None not in ports


def test_a_deep_folder_falls_back_to_tcp(tmp_path: Path) -> None:
    """Where the path is too long for a unix socket, hooks go over loopback."""
    site = Site.prepare(tmp_path / ("deep" * 20) / "out")

    assert () == site.lanes
    assert f"grpc://{site.grpc}" == site.hooks


def test_an_earlier_run_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    """State, logs and portraits of the last run go; a file the user put there stays."""
    Site.prepare(tmp_path)
    (tmp_path / "state").mkdir()
    for name in ("state/old", "portrait-cat.png", "notes.txt"):
        (tmp_path / name).write_text("old")
    Site.prepare(tmp_path)

    assert [MARKER, "notes.txt"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """It may have a ``state`` and ``logs`` of its own."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "important.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="name an empty folder"):
        Site.prepare(tmp_path)

    assert (tmp_path / "logs" / "important.txt").exists()


def test_flags_name_units_that_exist() -> None:
    """Layers, kinds and names agree with the network: a logit's name is its class."""
    names = class_names()
    layers = {f"_blocks.{block}" for block in range(BLOCKS)} | {"_fc"}

    assert 1000 == len(names)
    assert all(one.layer in layers for one in FLAGGED)
    assert 2 == sum(one.spikes for one in FLAGGED)
    assert {967: "espresso", 698: "palace"} == {
        one.index: one.name for one in FLAGGED if one.kind == "logit" and not one.spikes
    }
    assert "striped" in names[282]
    assert names[967] == "espresso"


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
def test_prometheus_accepts_its_configuration(site: Site) -> None:
    """Promtool finds no fault in the configuration and the rendered rules."""
    site.write(alertmanager=True)
    rules = render_rules(console_url=site.console, for_seconds=FOR_SECONDS)
    (site.folder / "rules.yml").write_text(rules, encoding="utf-8")
    done = subprocess.run(
        ["promtool", "check", "config", str(site.folder / "prometheus.yml")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@pytest.mark.e2e
@pytest.mark.skipif(
    shutil.which("amtool") is None, reason="apt-get install prometheus-alertmanager"
)
def test_alertmanager_accepts_its_configuration(site: Site) -> None:
    """Amtool finds no fault, and a broken address would be one."""
    site.write(alertmanager=True)
    good = _amtool(site)
    replace(site, console="no address").write(alertmanager=True)
    bad = _amtool(site)

    assert 0 == good.returncode, good.stdout + good.stderr
    assert 0 != bad.returncode


def _amtool(site: Site) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["amtool", "check-config", str(site.folder / "alertmanager.yml")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
