"""Pictures with manifests as the worker lays them down, without a model."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidecar.features import FeatureKey
from sidecar.jobs.manifest import encode_manifest, parents
from sidecar.jobs.protocol import Cause
from sidecar.jobs.provenance import PHASES
from sidecar.jobs.verification import picture_texts
from sidecar.recipes import Maximisation, Target, content_key
from sidecar.visualise.pictures import encode_png

FEATURE = f"tiny@{'ab' * 32}/conv/channel/3"


def facts_of(feature: str = FEATURE, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a manifest's facts but for its picture; ``changes`` replace whole keys."""
    key, recipe = FeatureKey.parse(feature), Maximisation(seed=seed)
    layer = key.layer
    found = {
        "schema": 2,
        "feature": feature,
        "layer": layer.layer,
        "kind": layer.kind.value,
        "unit": key.index,
        "view": layer.view.value,
        "scope": layer.scope.value,
        "position": None,
        "side": "positive",
        "terms": [],
        "model": {
            "name": layer.model,
            "digest": "ab" * 32,
            "digest_verified": True,
            "factory": "tiny:make",
        },
        "weights_file": None,
        "input": {"size": 32, "mean": [0.5] * 3, "std": [0.2] * 3},
        "method": {"name": recipe.method, "version": recipe.version},
        "recipe": recipe.values(),
        "seed": seed,
        "inputs": [],
        "findings": {},
        "typical_digest": "",
        "content_key": content_key(Target(key), recipe),
        "code": {
            "sidecar": "0.1.0",
            "commit": None,
            "python": "3.11.7",
            "torch": "2.13.0",
            "numpy": "2.4.6",
            "pillow": "13.0.0",
            "safetensors": "0.6.2",
            "onnxruntime": None,
        },
        "device": {
            "type": "cpu",
            "name": "x86_64",
            "threads": 1,
            "cuda": None,
            "flags": {
                "deterministic_algorithms": False,
                "cudnn_benchmark": False,
                "cudnn_deterministic": False,
                "cudnn_allow_tf32": True,
                "matmul_precision": "highest",
            },
        },
        "sandbox": {"mode": "off", "applied": [], "missing": {}},
        "activation": {
            "view": layer.view.value,
            "plain": 1.25,
            "augmented": 1.0,
            "augmented_spread": 0.1,
            "start": 0.5,
        },
        "history": {"step": [1, 128], "activation": [0.5, 1.25]},
        "live": None,
        "reliability": None,
        "job": {"id": "01JOB", "attempt": 1, "origin": "cli"},
        "parents": parents(Cause()),
        "reproduces": None,
        "started": "2026-01-01T00:00:00.000+00:00",
        "duration_seconds": 2.0,
        "timings": dict.fromkeys(tuple(f"{phase}_seconds" for phase in PHASES), 0.5),
    }
    return {**found, **changes}


def picture_of(facts: Mapping[str, Any], image: NDArray[np.uint8] | None = None) -> bytes:
    """Return a PNG with the texts of a manifest."""
    grey = np.full((8, 8, 3), 128, np.uint8) if image is None else image
    texts = {name: text for name, text in picture_texts(facts).items() if text}
    return encode_png(grey, texts)


def pair_of(facts: Mapping[str, Any], image: NDArray[np.uint8] | None = None) -> dict[str, bytes]:
    """Return picture and manifest by sha256, in this order."""
    png = picture_of(facts, image)
    picture = {
        "sha256": hashlib.sha256(png).hexdigest(),
        "bytes": len(png),
        "width": 8,
        "height": 8,
        "media_type": "image/png",
    }
    manifest = encode_manifest({**facts, "picture": picture})
    return {hashlib.sha256(content).hexdigest(): content for content in (png, manifest)}
