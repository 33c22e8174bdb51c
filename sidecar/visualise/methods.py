"""The methods there are, by the kind of recipe that asks for each."""

from collections.abc import Mapping, Sequence

from sidecar.errors import UnsupportedTarget
from sidecar.recipes import Recipe
from sidecar.visualise.atlas import ActivationAtlas
from sidecar.visualise.attribution import PixelAttribution
from sidecar.visualise.caricature import ImageCaricature
from sidecar.visualise.comparison import RevisionComparison
from sidecar.visualise.dream import Dream
from sidecar.visualise.examples import DatasetExamples
from sidecar.visualise.images import ActivationMaximisation, FeatureAccentuation
from sidecar.visualise.method import AnyMethod
from sidecar.visualise.search import GradientFreeSearch

_ALL: tuple[AnyMethod, ...] = (
    ActivationMaximisation(),
    FeatureAccentuation(),
    Dream(),
    DatasetExamples(),
    RevisionComparison(),
    PixelAttribution(),
    GradientFreeSearch(),
    ImageCaricature(),
    ActivationAtlas(),
)

METHODS: Mapping[type[Recipe], AnyMethod] = {method.recipe: method for method in _ALL}
"""Every method, by its kind of recipe."""


FORWARD_METHODS: Sequence[str] = tuple(
    sorted(kind.method for kind, method in METHODS.items() if not method.gradients)
)
"""Names of the methods that also work on models without gradients."""


def method_for(recipe: Recipe) -> AnyMethod:
    """Return the method that a recipe asks for.

    Raises:
        UnsupportedTarget: This version has none.
    """
    method = METHODS.get(type(recipe))
    if method is None:
        raise UnsupportedTarget(f"no method {recipe.method!r} in this version of the worker")
    return method
