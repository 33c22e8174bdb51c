"""What an audit may ask for, and what is said of it before a daemon starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sidecar.audits import describe
from sidecar.cli import main
from sidecar.compare import parse_rules
from sidecar.config import AuditConfig, SidecarConfig, load
from sidecar.errors import ConfigError
from tests.audits.conftest import HALF_PAST_TWO, HOUR

pytestmark = pytest.mark.unit

LAYERS = {"name": "n", "model": "tiny", "layers": ["2"]}


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        ({"model": "tiny@abc"}, "audits.0.model: 'tiny@abc': 'abc' is no sha256"),
        ({"model": "away"}, "audits: n: model 'away' is no model with a factory or onnx"),
        ({"against": "twin"}, "against 'twin' needs images to compare on: name a dataset"),
        ({"against": "tiny", "dataset": "noise"}, "against is the model itself"),
        ({"against": "away", "dataset": "noise"}, "audits: n: against 'away' is no model"),
        ({"dataset": "away"}, "audits: n: dataset 'away' is not under datasets"),
        ({"fail_on": "lost"}, "fail_on is about a comparison: name against, or remove it"),
        ({"fail_on": "same"}, "audits.0.fail_on: 'same' is no rule"),
        ({"fail_on": "lost,lost=5%"}, "audits.0.fail_on: lost is there twice"),
        ({"schedule": "at night"}, "audits.0.schedule: 'at night' is no cron expression"),
        ({"zone": "Berlin"}, "audits.0.zone: 'Berlin' is no known time zone"),
        ({"layers": ["2/position"]}, "audits.0.layers: '2/position' is no layer"),
        ({"layers": ["2/neuron"]}, "a neuron is not audited: use channel or logit"),
        ({"layers": ["2", "2"]}, "audits.0.layers: '2' is there twice"),
        ({"features": 65}, "audits.0.features"),
        ({"portraits": False}, "neither compares nor pictures anything"),
        ({"name": "a/b"}, "audits.0.name"),
        ({"model": "twin", "layers": []}, "audits: n: 'twin' has no flags: name layers"),
    ],
)
def test_an_audit_that_could_never_be_is_found_at_start_up(
    tmp_path: Path, settings: dict[str, Any], audit: dict[str, Any], message: str
) -> None:
    """The field, the value, and what to do."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump({**settings, "audits": [LAYERS | audit]}))

    with pytest.raises(ConfigError) as caught:
        load(path)
    assert message in caught.value.message


def test_two_audits_of_one_name_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Their nights could not be told apart."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump({**settings, "audits": [LAYERS, LAYERS]}))

    with pytest.raises(ConfigError, match="audits: 'n' is there twice"):
        load(path)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["moved", "lost", "new", "same", ""]),
            st.sampled_from(
                ["", "=0", "=7", "=5%", "=100%", "=2.5%", "=101%", "=-1", "=x", "=1.5"]
            ),
        ).map("".join),
        max_size=4,
    ).map(",".join)
)
def test_a_gate_that_the_configuration_takes_is_one(text: str) -> None:
    """It is read when a night is judged, and must not fail then."""
    audit = {**LAYERS, "against": "twin", "dataset": "noise", "fail_on": text}
    try:
        AuditConfig.model_validate(audit)
    except ValidationError:
        return

    parse_rules(text)


def test_check_config_says_what_an_audit_will_do(tmp_path: Path, settings: dict[str, Any]) -> None:
    """What is held against what, how often each flag has its turn, and when."""
    settings["flags"] = [{"feature": f"tiny/2/channel/{unit}"} for unit in range(7)]
    settings["flags"] += [{"feature": "tiny/2/neuron/1"}, {"feature": "tiny/2/head/1"}]
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = SidecarConfig.model_validate(settings)

    result = CliRunner().invoke(main, ["check", "config", "--config", str(path)])

    assert 0 == result.exit_code
    assert (
        "audit nightly: tiny against twin on noise; layers 2/channel, 2/neuron, 2/head"
        in result.stdout
    )
    assert (
        "audit nightly: tiny against twin on noise; layers 2/channel, 2/neuron, 2/head; "
        "not compared, for their kind: 2/neuron, 2/head; each of 8 flags has its turn within 3 nights; "
        "1 flags are of kinds that no picture can be made of; next night 2026-09-25 02:30 UTC"
    ) == describe(config.audits[0], config, HALF_PAST_TWO - HOUR)
