"""What a picture is asked for: targets, recipes and the content key that names the answer.

The room promises: its values know nothing of torch, for they cross from the console and the alert
webhook through the job queue to the worker; a recipe that can be built can be made; equal requests
have equal content keys, and an answer once made is found again by its key.
"""

from sidecar.recipes.accentuation import Accentuation
from sidecar.recipes.atlas import Atlas
from sidecar.recipes.attribution import Attribution
from sidecar.recipes.caricature import Caricature
from sidecar.recipes.comparison import Comparison
from sidecar.recipes.content import RECIPES, content_key, recipe_like, recipe_of
from sidecar.recipes.dataset import Dataset
from sidecar.recipes.dream import DeepDream
from sidecar.recipes.examples import Examples
from sidecar.recipes.maximisation import Maximisation
from sidecar.recipes.recipe import Recipe
from sidecar.recipes.search import Search
from sidecar.recipes.targets import PICTURE_KINDS, SIDED_KINDS, Side, Target, Term

__all__ = [
    "PICTURE_KINDS",
    "RECIPES",
    "SIDED_KINDS",
    "Accentuation",
    "Atlas",
    "Attribution",
    "Caricature",
    "Comparison",
    "Dataset",
    "DeepDream",
    "Examples",
    "Maximisation",
    "Recipe",
    "Search",
    "Side",
    "Target",
    "Term",
    "content_key",
    "recipe_like",
    "recipe_of",
]
