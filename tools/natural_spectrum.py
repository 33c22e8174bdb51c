"""Measure the magnitude spectrum of photographs for the MACO parametrisation.

``python tools/natural_spectrum.py`` rewrites ``sidecar/visualise/natural_spectrum.json`` from the colour
photographs inside scikit-image and scikit-learn; it is run by hand, for the photographs do not change.
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage import data
from sklearn.datasets import load_sample_image

from sidecar.visualise.augmentation import square
from sidecar.visualise.parametrisation import COLOUR_AXES

OUT = Path("sidecar/visualise/natural_spectrum.json")
SIDE = 256
ORIENTATIONS = 8
RINGS = 24
SCALES = (1, 2)
"""Crops are whole photographs and halves of them, so that a frequency stands for more than one size."""

_LEAST = 0.02  # a saturated colour would be infinite before the sigmoid


def main() -> int:
    """Write the file and return 0."""
    photographs = dict(_photographs())
    planes = np.stack([crop for photo in photographs.values() for crop in _crops(photo)])
    window = np.outer(np.hanning(SIDE), np.hanning(SIDE))
    centred = (planes - planes.mean((2, 3), keepdims=True)) * window / np.sqrt((window**2).mean())
    power = np.abs(np.fft.rfft2(centred, norm="ortho")).mean(0)  # (3, SIDE, SIDE // 2 + 1)
    deviation = planes.std((2, 3)).mean(0)
    radii, table = _tabulate(power)
    document = {
        "what": "mean magnitude of the Fourier coefficients of photographs, before the sigmoid and in "
        "decorrelated colour axes; log10, by axis, orientation and radial frequency",
        "photographs": sorted(photographs),
        "sources": [f"{name} {version(name)}" for name in ("scikit-image", "scikit-learn")],
        "crops": len(planes),
        "made_by": "tools/natural_spectrum.py",
        "deviation": [round(float(value), 4) for value in deviation],
        "radii": [round(float(value), 5) for value in radii],
        "log10_magnitude": np.round(table, 3).tolist(),
    }
    OUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{OUT}: {len(planes)} crops of {len(photographs)} photographs")
    return 0


def _photographs() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for name in ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle"):
        photo = getattr(data, name)()
        yield f"skimage.data.{name}", photo[0] if isinstance(photo, tuple) else photo
    for name in ("china", "flower"):
        yield f"sklearn.datasets {name}", load_sample_image(f"{name}.jpg")


def _crops(photo: NDArray[np.uint8]) -> Iterator[NDArray[np.float64]]:
    """Yield colour planes of square crops, shape ``(3, SIDE, SIDE)``."""
    height, width, _ = photo.shape
    axes = np.asarray(COLOUR_AXES)
    into = np.linalg.inv(axes / np.linalg.norm(axes, axis=0).max())
    for scale in SCALES:
        side = min(height, width) // scale
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                part = square(photo[top : top + side, left : left + side], SIDE).double().numpy()
                colours = np.clip(part, _LEAST, 1 - _LEAST)
                yield np.einsum("cr,rhw->chw", into, np.log(colours / (1 - colours)))


def _tabulate(power: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return radii, shape ``(RINGS,)``, and log10 magnitudes, ``(3, ORIENTATIONS, RINGS)``."""
    down = np.fft.fftfreq(SIDE)[:, None] + np.zeros((SIDE, SIDE // 2 + 1))
    across = np.fft.rfftfreq(SIDE)[None, :] + np.zeros_like(down)
    radius, angle = np.hypot(down, across), np.arctan2(down, across) % np.pi
    radii = np.geomspace(1 / SIDE, np.hypot(0.5, 0.5), RINGS)
    table = np.zeros((3, ORIENTATIONS, RINGS))
    step = np.pi / ORIENTATIONS
    for orientation in range(ORIENTATIONS):
        away = np.abs((angle - orientation * step + np.pi / 2) % np.pi - np.pi / 2)
        for ring, middle in enumerate(radii):
            # Wide enough to hold coefficients where they are few, at the lowest frequencies.
            near = np.exp(-((np.log(np.maximum(radius, 1e-9) / middle) / 0.15) ** 2))
            weight = near * np.exp(-((away / step) ** 2)) + 1e-12 * (radius > 0)
            table[:, orientation, ring] = (np.log10(power + 1e-12) * weight).sum(
                (1, 2)
            ) / weight.sum()
    return radii, table


if __name__ == "__main__":
    sys.exit(main())
