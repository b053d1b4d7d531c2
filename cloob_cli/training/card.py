"""The model card of a trained model: the README.md of its folder."""

from __future__ import annotations

import json
import platform

import torch

from cloob_cli import __version__
from cloob_cli.core.config import ModelConfig
from cloob_cli.training.events import Started


def model_card(config: ModelConfig, description: str, started: Started, skipped: int, seconds: float) -> str:
    """Markdown with the Hub's front matter. `config` carries the recipe and the metrics."""
    metrics = "\n".join(f"| {name} | {value:.4g} |" for name, value in config.metrics.items())
    recipe = json.dumps(config.recipe, indent=2)
    vision, text = config.vision, config.text
    skipped_text = f"{skipped:,} could not be read and were skipped" if skipped else "all could be read"
    return f"""---
library_name: cloob
pipeline_tag: zero-shot-image-classification
tags: [cloob, contrastive-learning, zero-shot-image-classification]
---

# {config.name}

{description or "A contrastive image-text model."}

| | |
|---|---|
| parameters | {started.parameters:,} |
| image | {vision.image_size} x {vision.image_size} pixels, {vision.kind} of width {vision.width} |
| text | at most {text.context_length} tokens of {text.vocab_size:,}, transformer of width {text.width} |
| embedding | {config.embed_dim} numbers |
| inverse temperature | {config.inv_tau:.4g} |

## Use

```sh
cloob classify PICTURES --labels labels.txt --model THIS_FOLDER
cloob embed PICTURES -o embeddings.npy --model THIS_FOLDER
```

```python
import cloob_cli

model = cloob_cli.load("THIS_FOLDER")
image_embeddings = model.encode_image(model.preprocess(image)[None])
text_embeddings = model.encode_text(model.tokenize(["a cat", "a dog"]))
```

## Scores

Shares are in [0, 1]. Measured at the end of training on data that it was not trained on; `loss` is the training loss.

| score | value |
|---|---|
{metrics}

## Training

{started.pairs:,} pairs, of which {skipped_text}; {started.validation_pairs:,} further pairs were held out.
{started.steps:,} steps of {started.batch_size:,} pairs in {_duration(seconds)} on {started.processes} process(es) \
({started.device}, {started.precision}), with cloob {__version__}, torch {torch.__version__} and Python \
{platform.python_version()}.

```json
{recipe}
```
"""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
