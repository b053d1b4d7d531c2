"""The training recipe: one closed section for each concern, every key with its default and its reason.

`load_recipe` (reading.py) reads the file and checks it against `Recipe` (recipe.py), whose sections are in model.py and
data.py, what a run is made of, and in training.py, how it trains.
"""

from cloob_cli.recipe.data import AugmentSection, DataSection, ValidationSection
from cloob_cli.recipe.model import ModelSection, TextSection, TokenizerSection
from cloob_cli.recipe.reading import MODEL_KEYS, PATH_KEYS, filled_in, load_recipe
from cloob_cli.recipe.recipe import Recipe
from cloob_cli.recipe.training import FinetuneSection, ObjectiveSection, OptimizerSection, TeacherSection, TrainSection

__all__ = [
    "MODEL_KEYS",
    "PATH_KEYS",
    "AugmentSection",
    "DataSection",
    "FinetuneSection",
    "ModelSection",
    "ObjectiveSection",
    "OptimizerSection",
    "Recipe",
    "TeacherSection",
    "TextSection",
    "TokenizerSection",
    "TrainSection",
    "ValidationSection",
    "filled_in",
    "load_recipe",
]
