"""The files people deploy with, checked by the programs that will read them."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config import load
from sidecar.metrics.alerts import ALERTS, RECORDINGS

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def need() -> Callable[[str], str]:
    """Return a function that finds a program, or skips the test and says what to install."""

    def find(program: str) -> str:
        beside = Path(sys.executable).parent / program
        found = str(beside) if beside.is_file() else shutil.which(program)
        if found is None:
            pytest.skip(f"{program} is missing: run make setup")
        return found

    return find


def run(*command: str) -> str:
    """Run a checker that must be content, and return what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(path: str) -> Any:
    """Return a YAML file of the project."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_promtool_accepts_configuration_and_rules(need: Any) -> None:
    """The Prometheus configuration and the rules it names are valid."""
    said = run(need("promtool"), "check", "config", "deploy/prometheus/prometheus.yaml")

    assert f"{len(ALERTS) + len(RECORDINGS)} rules found" in said


@pytest.mark.parametrize("name", ["features", "onset", "sidecar", "spikes", "windows"])
def test_the_rules_pass_their_own_tests(name: str, need: Any) -> None:
    """Each alert fires when it should, with the right words, and not before."""
    said = run(need("promtool"), "test", "rules", f"deploy/prometheus/tests/{name}.yaml")

    assert "SUCCESS" in said


def test_every_alert_is_tested_firing() -> None:
    """No rule ships without a promtool case in which it fires."""
    texts = [path.read_text() for path in (DEPLOY / "prometheus" / "tests").glob("*.yaml")]

    tested = set()
    for text in texts:
        for group in yaml.safe_load(text)["tests"]:
            tested |= {c["alertname"] for c in group.get("alert_rule_test", []) if c["exp_alerts"]}
            for case in group.get("promql_expr_test", []):
                if any(sample["value"] for sample in case["exp_samples"]):
                    tested |= set(re.findall(r'alertname="(\w+)"', case["expr"]))
    assert {alert.name for alert in ALERTS} == tested


def changed(rules: Any, name: str, **change: str | None) -> Any:
    """Return the rules with some keys of one alert set, or taken away."""
    rules = json.loads(json.dumps(rules))
    (rule,) = (r for group in rules["groups"] for r in group["rules"] if r.get("alert") == name)
    for key, value in change.items():
        rule.pop(key, None)
        if value is not None:
            rule[key] = value
    return rules


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_the_tests_of_an_alert_can_fail(alert: Any, tmp_path: Path, need: Any) -> None:
    """An alert that never fires or never ends is noticed by its own tests, and one with other times."""
    rules = read("deploy/prometheus/rules/sidecar.yaml")
    paths = sorted((DEPLOY / "prometheus" / "tests").glob("*.yaml"))
    found = []
    for path in paths:
        file = yaml.safe_load(path.read_text())
        file["tests"] = [test for test in file["tests"] if alert.name in json.dumps(test)]
        file["rule_files"] = ["rules.yaml"]
        if file["tests"]:
            (tmp_path / path.name).write_text(yaml.safe_dump(file))
            found.append(path.name)
    wrong: dict[str, dict[str, str | None]] = {
        "never fires": {"expr": "vector(0) > 1"},
        "never ends": {"keep_firing_for": "1d"},
    }
    if alert.for_seconds is None:
        wrong |= {"waits": {"for": "10s"}, "is not kept": {"keep_firing_for": None}}
    elif alert.for_seconds or alert.for_windows:
        wrong["does not wait"] = {"for": None}

    unnoticed = []
    for title, change in wrong.items():
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(changed(rules, alert.name, **change)))
        command = [need("promtool"), "test", "rules", *found]
        done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
        unnoticed += [title] if done.returncode == 0 else []
    assert unnoticed == []


@pytest.mark.parametrize(
    "path", sorted(path.name for path in (DEPLOY / "alertmanager").glob("*.yaml"))
)
def test_amtool_accepts_the_alertmanager_files(path: str, need: Any) -> None:
    """Both the configuration and the Slack example are valid."""
    assert "SUCCESS" in run(need("amtool"), "check-config", f"deploy/alertmanager/{path}")


@pytest.mark.parametrize("path", ["alertmanager.yaml", "alertmanager-slack.example.yaml"])
def test_a_spike_reaches_the_sidecar_and_people(path: str, need: Any) -> None:
    """The spike alert goes to both receivers, any other alert to people alone."""
    route = (
        need("amtool"),
        "config",
        "routes",
        "test",
        f"--config.file=deploy/alertmanager/{path}",
    )

    assert run(*route, "alertname=SidecarFeatureSpike", "model=m").split() == ["sidecar,people"]
    assert run(*route, "alertname=SidecarLayerShift", "model=m").split() == ["people"]
    assert run(*route, "alertname=SidecarDown").split() == ["people"]


def test_both_alertmanager_files_hold_back_the_same() -> None:
    """Whoever starts from the example with Slack gets the same inhibition."""
    plain, slack = (
        read(f"deploy/alertmanager/{name}.yaml")
        for name in ("alertmanager", "alertmanager-slack.example")
    )

    assert plain["inhibit_rules"] == slack["inhibit_rules"]
    assert plain["route"] == slack["route"]


def test_slack_gets_the_portrait_the_evidence_and_the_report() -> None:
    """The message carries the picture, and a button for each link that the rules make."""
    receivers = read("deploy/alertmanager/alertmanager-slack.example.yaml")["receivers"]
    (slack,) = next(r["slack_configs"] for r in receivers if r["name"] == "people")
    groups = read("deploy/prometheus/rules/sidecar.yaml")["groups"]
    notes = {
        name for group in groups for rule in group["rules"] for name in rule.get("annotations", ())
    }

    used = set(re.findall(r"CommonAnnotations\.(\w+)", json.dumps(slack)))
    assert slack["image_url"] == "{{ .CommonAnnotations.portrait_url }}"
    assert {"evidence_url", "feature_url", "report_url", "runbook_url", "dashboard_url"} <= used
    assert used <= notes


def test_the_webhook_is_the_consoles() -> None:
    """Alertmanager calls the daemon on its default console address."""
    (sidecar,) = (
        r for r in read("deploy/alertmanager/alertmanager.yaml")["receivers"] if len(r) > 1
    )

    assert sidecar["webhook_configs"][0]["url"] == "http://127.0.0.1:8080/api/v1/alertmanager"
    assert sidecar["webhook_configs"][0]["send_resolved"] is True


def test_compose_is_valid_and_stays_on_loopback(need: Any) -> None:
    """The file fits the Compose specification, and no port is published beyond this machine."""
    run(
        need("check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        "deploy/compose.yaml",
    )
    services = read("deploy/compose.yaml")["services"]

    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    shared = {name for name, s in services.items() if s.get("network_mode") == "service:door"}
    assert shared == {"sidecar", "prometheus", "alertmanager", "grafana"}


def test_links_in_alerts_lead_to_published_ports() -> None:
    """Console, runbooks, Grafana: a link that is dead on the page is worse than none."""
    ports = read("deploy/compose.yaml")["services"]["door"]["ports"]
    published = {port.rpartition(":")[0] for port in ports}
    text = (DEPLOY / "prometheus" / "rules" / "sidecar.yaml").read_text()

    linked = set(re.findall(r"https?://(127\.0\.0\.1:\d+)", text))
    assert {"127.0.0.1:8080", "127.0.0.1:9464"} <= linked <= published


def test_what_compose_mounts_exists() -> None:
    """Every file or folder of the project that a service mounts is there."""
    services = read("deploy/compose.yaml")["services"]

    mounts = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
    ]
    paths = [DEPLOY / mount for mount in mounts if mount.startswith(".")]
    assert len(paths) == 5
    assert all(path.exists() for path in paths)


def test_the_sidecars_file_for_compose_is_valid() -> None:
    """The daemon would start with it, and listens where Prometheus and Alertmanager look."""
    config = load(DEPLOY / "sidecar.yaml")

    (target,) = read("deploy/prometheus/prometheus.yaml")["scrape_configs"][0]["static_configs"]
    assert [config.listen.metrics] == target["targets"]
    assert config.listen.web == "127.0.0.1:8080"
    assert config.listen.grpc == ["127.0.0.1:50061"]
    assert config.listen.lane == ["unix:///run/sidecar/sidecar.sock"]


def test_hadolint_finds_nothing(need: Any) -> None:
    """The Dockerfile follows hadolint's rules without an exception."""
    run(need("hadolint"), "Dockerfile")
    text = (ROOT / "Dockerfile").read_text()

    assert "hadolint ignore" not in text
    assert "USER 10001:10001" in text
    assert text.index(" AS worker") < text.index(" AS daemon"), "the default target is the last"


def test_the_daemon_image_has_no_torch() -> None:
    """Only the stage behind the worker installs the extra that brings torch."""
    text = (ROOT / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]

    with_worker = [stage.split()[2] for stage in stages if "[worker" in stage]
    daemon = next(stage for stage in stages if stage.split()[2] == "daemon")
    assert with_worker == ["build-worker"]
    assert "--from=build " in daemon


def test_a_model_server_gets_no_more_than_the_hooks_need() -> None:
    """The base is what every installation has; what the daemon needs is an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", one)[0] for one in project["dependencies"]}

    assert {"grpcio", "numpy", "protobuf"} == names
    assert [] == project["optional-dependencies"]["hooks"]


def test_grafana_is_provisioned_with_the_dashboard() -> None:
    """The provider reads the folder that Compose mounts, and the data source is Prometheus."""
    provider = read("grafana/provisioning/dashboards/sidecar.yaml")["providers"][0]
    source = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    mounts = read("deploy/compose.yaml")["services"]["grafana"]["volumes"]

    assert f"../grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert provider["allowUiUpdates"] is False
    assert (source["type"], source["url"]) == ("prometheus", "http://127.0.0.1:9090")
    dashboard = json.loads((ROOT / "grafana/dashboards/sidecar-overview.json").read_text())
    assert dashboard["uid"] == "sidecar-overview"
