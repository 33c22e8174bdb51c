"""The commands say how far a portrait can be believed."""

import pytest

from sidecar.cli.export import Exported, export_files
from sidecar.cli.jobs import _describe
from sidecar.cli.standing import describe
from sidecar.wire.v1 import features_pb2, jobs_pb2

pytestmark = pytest.mark.unit

REASON = "Only 4% of the excitation survives JPEG."


def test_a_job_says_verdict_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    """In capitals, so that it is not read over; nothing where nobody measured."""
    made = [
        jobs_pb2.JobArtifact(feature="m/a/channel/1", verdict="unreliable", reasons=[REASON]),
        jobs_pb2.JobArtifact(feature="m/a/channel/2"),
    ]
    _describe(jobs_pb2.Job(id="j", state=jobs_pb2.JOB_STATE_DONE, artifacts=made))

    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  verdict  UNRELIABLE")
    assert f"           {REASON}" == lines[at + 1]
    assert 1 == sum("verdict" in line for line in lines)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [("unreliable", "UNRELIABLE"), ("trusted", "TRUSTED"), ("", "not assessed")],
)
def test_a_feature_says_it_beside_the_link(verdict: str, said: str) -> None:
    """Whoever opens the picture knows."""
    feature = features_pb2.Feature(
        page="http://h/f/m@r/a/channel/1", portrait_digest="a" * 64, portrait_verdict=verdict
    )

    (line,) = (one for one in describe(feature, None) if "portrait" in one)

    assert line.endswith(f"portrait.png ({said})")


def test_an_export_says_it_on_its_page_and_in_its_list() -> None:
    """An export is read without a console."""
    facts = {
        "feature": "m/a/channel/1",
        "model": {"name": "m", "digest": "d" * 64},
        "method": {"name": "activation_maximisation", "version": 2},
        "seed": 0,
        "recipe": {},
        "activation": {"plain": 1.0, "view": "max"},
        "code": {},
        "device": {"type": "cpu", "name": "c"},
        "started": "2026-01-01T00:00:00Z",
        "job": {"id": "j", "origin": "cli"},
        "reliability": {"verdict": "unreliable", "reasons": [REASON]},
    }
    files = export_files([Exported("a" * 64, "b" * 64, facts, {})], "here")

    assert f"<dd>UNRELIABLE {REASON}</dd>" in files["index.html"].decode()
    assert '"verdict": "unreliable"' in files["index.json"].decode()
