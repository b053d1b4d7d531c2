"""Zero-shot accuracy of a model on labeled data sets: the numbers on the model cards.

    python scripts/score_zero_shot.py cloob-xs-pictograms DATASET...

A data set is a folder in the layout of CLIP_benchmark's webdatasets, or with a subfolder of images a class. Prints
one JSON document: top-1 and top-5 accuracy of each, and the mean top-1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cloob_cli
from cloob_cli.data.classification import open_classification_set
from cloob_cli.data.images import Preprocess
from cloob_cli.training.validation import Validator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("datasets", nargs="+")
    parser.add_argument("--device", default=None)
    arguments = parser.parse_args()
    model = cloob_cli.load(arguments.model, device=arguments.device)
    preprocess = Preprocess(model.config.vision.image_size, model.config.preprocess)
    sets = [open_classification_set(Path(folder)) for folder in arguments.datasets]
    scores = Validator(None, sets, preprocess, model.tokenize).run(model)
    print(json.dumps({name: round(value, 4) for name, value in scores.items()}, indent=2))


if __name__ == "__main__":
    main()
