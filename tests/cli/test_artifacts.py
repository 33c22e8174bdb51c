"""Artifacts from the command line, against a real daemon with a real, tiny network."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sidecar.cli import main
from sidecar.features import Capture, LayerKey
from sidecar.monitor import IMAGE_LIMIT_BYTES
from sidecar.store import OwnerKind
from sidecar.testing import RunningDaemon, running_daemon
from sidecar.weights import module_digest
from tests.jobs import tiny_model

pytestmark = pytest.mark.e2e

FOLDER = Path(tiny_model.__file__).parent


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon that can look into the tiny network, with one portrait of it."""
    settings = {
        "models": [{"name": "tiny", "factory": "tiny_model:make", "input": {"size": 32}}],
        "jobs": {
            "python_path": [FOLDER],
            "threads": 1,
            "device": "cpu",
            "recipe": {"steps": 12, "canvas": 32, "zoom_min": 0.8},
        },
    }
    with running_daemon(tmp_path_factory.mktemp("artifacts"), settings) as found:
        layer = LayerKey("tiny", module_digest(tiny_model.make()), "2")
        found.daemon.monitor.register(layer, 12, Capture(), 0.0)
        made = run(found, "job", "run", "tiny/2/channel/3", "--no-watch")
        assert 0 == made.exit_code, made.output
        job_id = made.stdout.split()[1]
        assert 0 == run(found, "job", "watch", job_id).exit_code
        yield found


def run(running: RunningDaemon, *arguments: str) -> Result:
    """Run one command against the daemon."""
    return CliRunner().invoke(main, [*arguments, "--address", running.grpc])


def listed(running: RunningDaemon, *arguments: str) -> list[dict[str, Any]]:
    """Return what ``artifact list`` says."""
    found = run(running, "artifact", "list", *arguments, "-o", "json")
    assert 0 == found.exit_code, found.output
    return json.loads(found.stdout)


def original(running: RunningDaemon) -> dict[str, Any]:
    """Return the fixture's portrait."""
    found = listed(running, "--feature", "tiny/2/channel/3")
    return next(one for one in found if not one["reproduces"])


def test_pictures_are_listed_by_what_they_are(running: RunningDaemon) -> None:
    """Feature, model, revision, method, verdict and job narrow the list; none finds too much."""
    found = original(running)
    revision = found["feature"].partition("@")[2][:8]

    for wanted in (
        ("--feature", "tiny/2/channel/3"),
        ("--model", "tiny"),
        ("--revision", revision),
        ("--method", "activation_maximisation"),
        ("--job", found["job_id"]),
        ("--verdict", found["verdict"]),
    ):
        assert found in listed(running, *wanted), wanted
    for other in (("--model", "t"), ("--revision", "0" * 8), ("--method", "dreaming")):
        assert [] == listed(running, *other), other
    other = {"trusted", "weak", "unreliable"} - {found["verdict"]}
    assert all(found not in listed(running, "--verdict", one) for one in other)
    assert [] == listed(running, "--job", "01K")
    assert found["picture_digest"][:16] in run(running, "artifact", "list").stdout


def test_what_the_daemon_has_is_verified(running: RunningDaemon) -> None:
    """Everything, or one by either digest; an unknown one is not found."""
    found = original(running)

    assert 0 == run(running, "artifact", "verify", "--all").exit_code
    for name in ("picture_digest", "manifest_digest"):
        answer = run(running, "artifact", "verify", found[name])
        assert f"ok  {found['manifest_digest']} {found['feature']}\n" == answer.stdout
    assert 3 == run(running, "artifact", "verify", "0" * 64).exit_code
    assert 2 == run(running, "artifact", "verify").exit_code


def test_a_picture_is_reproduced_bit_for_bit(running: RunningDaemon) -> None:
    """The same machine makes the same bits, from a job of its own; the original stays the answer."""
    found = original(running)

    answer = run(
        running, "artifact", "reproduce", found["picture_digest"], "--strict", "-o", "json"
    )

    assert 0 == answer.exit_code, answer.output
    said = json.loads(answer.stdout)
    assert ("identical", 0.0, 0.0, 0.0, []) == tuple(
        said[name]
        for name in (
            "verdict",
            "max_difference",
            "mean_difference",
            "activation_difference",
            "changed",
        )
    )
    assert found["manifest_digest"] != said["again"]["manifest"]
    again = next(one for one in listed(running) if one["reproduces"])
    assert found["manifest_digest"] == again["reproduces"]
    cached = run(running, "job", "run", "tiny/2/channel/3", "-o", "json")
    answered = json.loads(cached.stdout)
    assert answered["from_cache"]
    assert found["manifest_digest"] == answered["artifacts"][0]["manifest_digest"]


def test_an_export_stands_by_itself(running: RunningDaemon, tmp_path: Path) -> None:
    """Folder and archive hold picture, manifest, job and pages, and are verified without a daemon."""
    found = original(running)
    for place in (tmp_path / "export", tmp_path / "export.zip"):
        answer = run(running, "artifact", "export", found["picture_digest"], "--to", str(place))
        assert 0 == answer.exit_code, answer.output

        checked = CliRunner().invoke(
            main, ["artifact", "verify", "--all", "--folder", str(place)], catch_exceptions=False
        )
        assert 0 == checked.exit_code, checked.output
        assert f"ok  {found['manifest_digest']} {found['feature']}\n" == checked.stdout
    names = {str(p.relative_to(tmp_path / "export")) for p in tmp_path.rglob("export/**/*.*")}
    picture, manifest = found["picture_digest"], found["manifest_digest"]
    assert names == {
        "README.md",
        "index.html",
        "index.json",
        f"artifacts/{picture}.png",
        f"artifacts/{manifest}.json",
        f"jobs/{found['job_id']}.json",
    }
    assert names == set(zipfile.ZipFile(tmp_path / "export.zip").namelist())
    page = (tmp_path / "export" / "index.html").read_text(encoding="utf-8")
    assert f"artifacts/{picture}.png" in page
    assert found["feature"] in page


def test_damage_to_an_export_is_told(running: RunningDaemon, tmp_path: Path) -> None:
    """A changed picture, a changed manifest and a missing picture, each with exit 1 and its name."""
    found = original(running)
    whole = tmp_path / "whole"
    run(running, "artifact", "export", found["picture_digest"], "--to", str(whole))
    picture = f"artifacts/{found['picture_digest']}.png"
    manifest = f"artifacts/{found['manifest_digest']}.json"

    def spoil(name: str, path: str, content: bytes | None) -> Result:
        copy = shutil.copytree(whole, tmp_path / name)
        if content is None:
            (copy / path).unlink()
        else:
            (copy / path).write_bytes(content)
        return CliRunner().invoke(main, ["artifact", "verify", "--all", "--folder", str(copy)])

    text = (whole / manifest).read_bytes()
    for answer, words in (
        (spoil("picture", picture, b"x"), "holds other bytes"),
        (spoil("manifest", manifest, text.replace(b'"seed": 0', b'"seed": 1')), "holds other"),
        (spoil("garbage", manifest, b"{"), "holds other bytes"),
        (spoil("missing", picture, None), "is not there"),
    ):
        assert 1 == answer.exit_code
        assert words in answer.stdout


def test_a_state_directory_is_verified_as_it_lies(running: RunningDaemon) -> None:
    """Without asking the daemon, and by a picture's digest too."""
    state, found = running.daemon.config.state_dir, original(running)

    for wanted in ("--all", found["picture_digest"], found["manifest_digest"]):
        answer = CliRunner().invoke(main, ["artifact", "verify", wanted, "--folder", str(state)])
        assert 0 == answer.exit_code, answer.output
        # Two manifests may have one picture: a reproduction is its equal to the byte.
        known = "feature" if wanted == found["picture_digest"] else "manifest_digest"
        assert found[known] in answer.stdout


def test_a_pin_keeps_the_pair_until_it_is_taken_back(running: RunningDaemon) -> None:
    """Pinned is told by gc with its note; unpinning twice is an error."""
    found = original(running)
    kept = (found["picture_digest"], found["manifest_digest"])

    assert 0 == run(running, "artifact", "pin", kept[1], "--note", "audit 7").exit_code
    held = running.daemon.storage.references.of(OwnerKind.PIN)
    fates = json.loads(run(running, "artifact", "gc", "--dry-run", "-o", "json").stdout)

    assert set(kept) == {one.digest for one in held}
    said = {one["digest"]: one["why"] for one in fates}
    assert all("pin operator (audit 7)" in said[digest] for digest in kept)
    assert all("newest answer" in said[digest] for digest in kept)
    assert 0 == run(running, "artifact", "unpin", kept[0]).exit_code
    assert 3 == run(running, "artifact", "unpin", kept[0]).exit_code
    assert () == running.daemon.storage.references.of(OwnerKind.PIN)


def test_nothing_goes_while_it_is_wanted(running: RunningDaemon) -> None:
    """Within the limits a collection removes nothing, and says how many it looked at."""
    before = running.daemon.storage.artifacts.number

    answer = run(running, "artifact", "gc")

    assert 0 == answer.exit_code
    assert f"0 of {before} artifacts removed" in answer.stderr
    assert before == running.daemon.storage.artifacts.number


def test_the_console_says_where_a_picture_comes_from(running: RunningDaemon) -> None:
    """The page has the manifest in words and what came of checking it; the API says the same."""
    found = original(running)
    with httpx.Client(base_url=running.console_url) as client:
        page = client.get(f"/artifacts/{found['picture_digest']}")
        answer = client.get(f"/api/v1/artifacts/{found['manifest_digest']}/verification").json()
        missing = client.get(f"/artifacts/{'0' * 64}")

    assert (200, 404) == (page.status_code, missing.status_code)
    assert "Checked now: everything holds" in page.text
    for part in (found["job_id"], "model digest", "recipe steps", "code torch", "device threads"):
        assert part in page.text, part
    assert answer["ok"]
    assert (found["feature"], found["picture_digest"]) == (
        answer["feature"],
        answer["picture_digest"],
    )
    assert ["content", "schema", "picture", "texts", "content_key"] == [
        one["check"] for one in answer["findings"]
    ]


def test_damage_on_the_disk_is_told_wherever_one_asks(running: RunningDaemon) -> None:
    """A picture whose bytes were changed: the command fails with a line, and so does the page."""
    run(running, "job", "run", "tiny/2/channel/5", "--watch")
    found = next(one for one in listed(running, "--feature", "tiny/2/channel/5"))
    path, _ = running.daemon.storage.artifacts.open(found["picture_digest"])
    whole = path.read_bytes()
    path.write_bytes(b"something else")
    state = running.daemon.config.state_dir

    offline = CliRunner().invoke(main, ["artifact", "verify", "--all", "--folder", str(state)])
    online = run(running, "artifact", "verify", found["manifest_digest"])
    with httpx.Client(base_url=running.console_url) as client:
        page = client.get(f"/artifacts/{found['manifest_digest']}")
    running.daemon.storage.artifacts.put(whole, "image/png")

    assert 0 == run(running, "artifact", "verify", found["manifest_digest"]).exit_code
    assert (1, 1) == (offline.exit_code, online.exit_code)
    assert "holds other bytes" in offline.stdout
    assert f"picture {found['picture_digest']} is not there" in online.stdout
    assert "Checked now: something is wrong" in page.text


def test_an_image_is_put_and_looked_at(running: RunningDaemon, tmp_path: Path) -> None:
    """What is stored goes by its sha256; a recipe that names it says which pixels drive a unit."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 32, 3), np.uint8)
    file = tmp_path / "noise.png"
    Image.fromarray(pixels).save(file)

    put = run(running, "artifact", "put", str(file))
    again = run(running, "artifact", "put", str(file), "-o", "json")
    digest = put.stdout.strip()
    asked = ("--set", "method=attribution", "--set", f"image={digest}", "--set", "window=8")
    made = run(running, "job", "run", "tiny/2/channel/4", *asked, "--set", "stride=8")

    assert 0 == put.exit_code, put.output
    assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    assert {"digest": digest, "media_type": "image/png"} == json.loads(again.stdout)
    assert 0 == made.exit_code, made.output
    (found,) = listed(running, "--method", "attribution")
    manifest = json.loads(run(running, "artifact", "get", found["manifest_digest"]).stdout)
    assert {"kind": "artifact", "name": "image", "digest": digest} in manifest["inputs"]
    assert digest == manifest["findings"]["image"]["sha256"]
    assert 0 == run(running, "artifact", "verify", found["manifest_digest"]).exit_code


def test_only_images_are_put(running: RunningDaemon, tmp_path: Path) -> None:
    """Within limits; the refusal says what would do."""
    text, large = tmp_path / "notes.txt", tmp_path / "large.png"
    text.write_text("no image")
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(IMAGE_LIMIT_BYTES))

    refused = [run(running, "artifact", "put", str(file)) for file in (text, large)]

    assert "use PNG, JPEG, WebP" in refused[0].output
    assert f"use 1 to {IMAGE_LIMIT_BYTES}" in refused[1].output
    assert all(one.exit_code for one in refused)
