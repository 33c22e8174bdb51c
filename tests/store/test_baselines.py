"""Baselines as files and their versions in the catalogue."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import CorruptState, UnknownBaseline
from sidecar.features import Capture, FeatureKind, LayerKey, Scope, View
from sidecar.store import (
    ArtifactStore,
    BaselineFacts,
    BaselineStore,
    Database,
    pack_baseline,
    unpack_baseline,
)
from sidecar.store.baselines import HEADER_LIMIT, VERSIONS_KEPT

LAYER = LayerKey("m", "a" * 64, "conv", FeatureKind.CHANNEL, View.MAX)
FACTS = BaselineFacts(
    layer=LAYER,
    capture=Capture("vllm 0.33", "float16", compiled=True, tap="torch"),
    width=8,
    requests=12_000,
    windows=180,
    started=1_000.0,
    frozen=4_600.0,
)


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    """An empty artifact store of a megabyte."""
    return ArtifactStore(tmp_path / "artifacts", 1 << 20)


@pytest.fixture
def store(tmp_path: Path, artifacts: ArtifactStore) -> Iterator[BaselineStore]:
    """An empty store of baselines."""
    database = Database(tmp_path / "x.sqlite3")
    yield BaselineStore(database, artifacts)
    database.close()


@pytest.mark.unit
@given(
    facts=st.builds(
        BaselineFacts,
        layer=st.builds(
            LayerKey,
            st.just("m"),
            st.just("a" * 64),
            st.sampled_from(["conv", "blocks.3.mlp"]),
            st.sampled_from(FeatureKind),
            st.sampled_from(View),
            st.sampled_from(Scope),
        ),
        capture=st.builds(Capture, st.text(), st.text(), st.booleans(), st.text()),
        width=st.integers(1, 1 << 40),
        requests=st.integers(0, 1 << 60),
        windows=st.integers(0, 1 << 40),
        started=st.floats(0, 1e12),
        frozen=st.floats(0, 1e12),
    ),
    statistics=st.binary(max_size=200),
)
def test_a_file_says_what_it_was_made_of(facts: BaselineFacts, statistics: bytes) -> None:
    """Facts and statistics come back equal, whatever they hold."""
    assert (facts, statistics) == unpack_baseline(pack_baseline(facts, statistics))


@pytest.mark.unit
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_changed_bit_anywhere_is_seen(place: int, bit: int) -> None:
    """A damaged file is never taken for a baseline."""
    content = bytearray(pack_baseline(FACTS, b"statistics" * 5))
    content[place % len(content)] ^= 1 << bit

    with pytest.raises(CorruptState):
        unpack_baseline(bytes(content))


@pytest.mark.unit
@given(length=st.integers(0, 10**6))
def test_a_file_cut_short_is_seen(length: int) -> None:
    """So is one that was not written to its end."""
    content = pack_baseline(FACTS, b"statistics" * 5)

    with pytest.raises(CorruptState):
        unpack_baseline(content[: length % len(content)])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("version", "header", "message"),
    [
        (2, b"{}", "format 2"),
        (1, b"{", "header"),
        (1, b"[]", "header"),
        (1, b"[" * 9000, "header"),
        (1, json.dumps(FACTS.to_dict() | {"width": "wide"}).encode(), "header"),
        (1, json.dumps(FACTS.to_dict() | {"layer": "../../etc"}).encode(), "header"),
        (1, json.dumps(FACTS.to_dict() | {"capture": 3}).encode(), "header"),
        (1, b" " * HEADER_LIMIT + b"{}", "bytes should have"),
    ],
)
def test_a_whole_file_with_a_strange_header_is_refused(
    version: int, header: bytes, message: str
) -> None:
    """A right checksum does not make a header believable."""
    content = struct.pack("<8sHIQ", b"SCBASE\r\n", version, len(header), 0) + header

    with pytest.raises(CorruptState, match=message):
        unpack_baseline(content + struct.pack("<I", zlib.crc32(content)))


@pytest.mark.unit
def test_versions_are_listed_newest_first_and_per_layer(store: BaselineStore) -> None:
    """Each layer has versions of its own; the same file twice is one version."""
    other = replace(FACTS, layer=replace(LAYER, layer="fc"))
    first = store.add(pack_baseline(FACTS, b"1"), "learned", 1.0)
    second = store.add(pack_baseline(FACTS, b"2"), "imported", 2.0)
    store.add(pack_baseline(FACTS, b"2"), "imported", 3.0)
    third = store.add(pack_baseline(other, b"3"), "by command", 4.0)

    assert (second, first) == store.versions(LAYER)
    assert (third, second, first) == store.versions()
    assert {first.digest, second.digest, third.digest} == store.digests()
    assert pack_baseline(FACTS, b"1") == store.read(first.digest)


@pytest.mark.unit
def test_old_versions_go_but_not_the_one_in_force(store: BaselineStore) -> None:
    """However often a layer learns anew, what is kept is bounded."""
    in_force = store.add(pack_baseline(FACTS, b"first"), "learned", 0.0)
    for number in range(VERSIONS_KEPT + 5):
        content = pack_baseline(FACTS, str(number).encode())
        store.add(content, "imported", float(number), in_force.digest)

    kept = store.versions(LAYER)
    assert VERSIONS_KEPT + 1 == len(kept)
    assert in_force.digest == kept[-1].digest


@pytest.mark.unit
def test_what_is_no_baseline_is_neither_stored_nor_read(
    store: BaselineStore, artifacts: ArtifactStore
) -> None:
    """A picture's digest names no baseline, and a text file is none."""
    picture = artifacts.put(b"png", "image/png")

    with pytest.raises(CorruptState, match="no baseline file"):
        store.add(b"hello", "imported", 0.0)
    with pytest.raises(UnknownBaseline):
        store.read(picture.digest)
    assert artifacts.used_bytes == picture.size


@pytest.mark.unit
def test_a_damaged_row_hides_nothing_but_itself(tmp_path: Path, artifacts: ArtifactStore) -> None:
    """The disk may change one row; the other versions are still there."""
    database = Database(tmp_path / "y.sqlite3")
    store = BaselineStore(database, artifacts)
    store.add(pack_baseline(FACTS, b"1"), "learned", 1.0)
    kept = store.add(pack_baseline(FACTS, b"2"), "learned", 2.0)
    with database.transaction() as cursor:
        cursor.execute("UPDATE baselines SET facts = '{' WHERE sequence = 1")

    assert (kept,) == store.versions()
    database.close()
