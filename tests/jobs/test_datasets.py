"""Folders of images: what is in them, told apart by content."""

import os
from pathlib import Path

import pytest

from sidecar.config import DatasetConfig
from sidecar.errors import UnsupportedTarget
from sidecar.jobs import Datasets
from sidecar.recipes import Dataset

pytestmark = pytest.mark.unit


def datasets(folder: Path, limit: int = 100) -> Datasets:
    """Return the one dataset of a folder."""
    return Datasets([DatasetConfig(name="photos", folder=folder, image_limit=limit)])


def test_a_dataset_is_its_images_and_not_their_names(tmp_path: Path) -> None:
    """Renaming changes nothing, another image everything; what is no image is passed over."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.PNG").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    (tmp_path / "notes.txt").write_text("no image")
    found = datasets(tmp_path)
    before = found.read("photos")

    (tmp_path / "b.jpg").rename(tmp_path / "z.jpg")
    renamed = found.read("photos")
    (tmp_path / "z.jpg").write_bytes(b"c")
    os.utime(tmp_path / "z.jpg", ns=(1, 1))
    changed = found.read("photos")

    assert ["b.jpg", "deep/a.PNG"] == [name for name, _ in before.files]
    assert before.digest == renamed.digest != changed.digest
    assert before == Dataset.of(before.document())


def test_no_link_leads_out_of_a_dataset(tmp_path: Path) -> None:
    """A job reads what the operator named, and not what somebody linked to."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(b"a")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "own.png").write_bytes(b"b")
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret" / "a.png")
    (tmp_path / "set" / "folder").symlink_to(tmp_path / "secret")

    assert ["own.png"] == [name for name, _ in datasets(tmp_path / "set").read("photos").files]


def test_a_dataset_is_bounded(tmp_path: Path) -> None:
    """The first images by path are taken."""
    for name in "edcba":
        (tmp_path / f"{name}.png").write_bytes(name.encode())

    found = datasets(tmp_path, limit=2).read("photos")

    assert ["a.png", "b.png"] == [name for name, _ in found.files]


def test_what_is_no_dataset_is_said_in_words(tmp_path: Path) -> None:
    """The unknown name, the empty folder and the missing folder each say what to do."""
    (tmp_path / "gone").mkdir()
    gone = datasets(tmp_path / "gone")
    with pytest.raises(UnsupportedTarget, match=r"no image in .*: need files that end in"):
        gone.read("photos")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UnsupportedTarget, match="dataset photos: cannot read"):
        gone.read("photos")
    with pytest.raises(UnsupportedTarget, match="'x' is unknown: use one of photos"):
        gone.read("x")
    with pytest.raises(UnsupportedTarget, match="none is configured: name one under datasets"):
        Datasets().read("x")
