"""The name of an answer, and the recipes there are."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sidecar.errors import UnsupportedTarget
from sidecar.recipes.accentuation import Accentuation
from sidecar.recipes.atlas import Atlas
from sidecar.recipes.attribution import Attribution
from sidecar.recipes.caricature import Caricature
from sidecar.recipes.comparison import Comparison
from sidecar.recipes.dream import DeepDream
from sidecar.recipes.examples import Examples
from sidecar.recipes.maximisation import Maximisation
from sidecar.recipes.recipe import Recipe
from sidecar.recipes.search import Search
from sidecar.recipes.targets import Target

RECIPES: Mapping[str, type[Recipe]] = {
    kind.method: kind
    for kind in (
        Maximisation,
        Accentuation,
        DeepDream,
        Examples,
        Comparison,
        Attribution,
        Search,
        Caricature,
        Atlas,
    )
}
"""The kinds of recipe by the name of their method."""


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from named values; ``method`` says which, activation maximisation if none.

    Raises:
        UnsupportedTarget: The method or a name is unknown, or a value has the wrong type or range.
    """
    rest = dict(values)
    method = rest.pop("method", Maximisation.method)
    kind = RECIPES.get(method) if isinstance(method, str) else None
    if kind is None:
        raise UnsupportedTarget(
            f"recipe.method {method!r} is unknown: use one of {', '.join(sorted(RECIPES))}"
        )
    return kind.of(rest)


def recipe_like(usual: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the usual recipe with some values named; another method is asked for in full.

    Raises:
        UnsupportedTarget: As ``recipe_of``.
    """
    if values.get("method", usual.method) != usual.method:
        return recipe_of(values)
    return recipe_of({**usual.values(), **values})


def content_key(target: Target, recipe: Recipe, inputs: Mapping[str, str] | None = None) -> str:
    """Return the sha256 that names the answer to a request.

    Args:
        target: What the picture is of; its revision is the model digest.
        recipe: How it is made.
        inputs: Digests of what else the answer depends on, by the names of ``Recipe.inputs`` and
            ``Target.inputs``, such as ``typical`` for the typical ranges; others are left alone.

    Returns:
        64 hexadecimal digits, equal for equal requests on any machine.
    """
    given = inputs or {}
    request = {
        "target": target.document(),
        "recipe": recipe.values(),
        "version": recipe.version,
        "inputs": {name: given.get(name, "") for name in (*recipe.inputs, *target.inputs)},
    }
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
