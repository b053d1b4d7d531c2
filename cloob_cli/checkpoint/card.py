"""The model card: the README.md of a model folder, for trained and converted models alike."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from cloob_cli.text_format import duration
from cloob_cli.version import __version__

if TYPE_CHECKING:
    from cloob_cli.core.model_config import ModelConfig


class TrainingRun(Protocol):
    """The facts of a training run that its model card tells; `training.events.Started` has them."""

    @property
    def pairs(self) -> int: ...
    @property
    def validation_pairs(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def processes(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...


def model_card(
    config: ModelConfig,
    *,
    summary: str = "",
    license: str | None = None,
    languages: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    scores: Sequence[Mapping[str, str]] = (),
    usage: str = "THIS_FOLDER",
) -> str:
    """Write a model card with the front matter that the Hugging Face Hub reads.

    Args:
        config: the model's configuration; its name is the title.
        facts: further rows of the table of facts.
        scores: rows of the table of scores; all have the same columns.
        usage: what the examples give as the model.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="cloob",
        pipeline_tag="zero-shot-image-classification",
        tags=["cloob", "clip", "contrastive-learning"],
        license=license.lower() if license else None,
        language=list(languages) or None,
    )
    vision, text = config.vision, config.text
    rows = {
        "image": f"{vision.image_size} x {vision.image_size} pixels, {vision.kind} of width {vision.width}",
        "text": f"at most {text.context_length} tokens of {text.vocab_size:,}, transformer of width {text.width}",
        "embedding": f"{config.embed_dim} dimensions",
        "inverse temperature": f"{config.inv_tau:.4g}",
    } | dict(facts or {})
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {config.name}",
        summary or "A contrastive image-text model.",
        _table([{"fact": name, "value": value} for name, value in rows.items()]),
        _USAGE.replace("MODEL", usage),
    ]
    if scores:
        parts.append(f"## Scores\n\n{_table(scores)}")
    return "\n\n".join(parts) + "\n"


def trained_model_card(config: ModelConfig, summary: str, run: TrainingRun, skipped: int, seconds: float) -> str:
    """Write the model card of a trained model.

    Args:
        config: carries the recipe and the metrics.
        skipped: how many of the run's pairs could not be read.
        seconds: how long training took.
    """
    import torch

    card = model_card(
        config,
        summary=summary,
        facts={"parameters": f"{run.parameters:,}"},
        scores=[{"score": name, "value": f"{value:.4g}"} for name, value in config.metrics.items()],
    )
    skipped_text = f"{skipped:,} could not be read and were skipped" if skipped else "all could be read"
    return f"""{card}
Fractions are in [0, 1]. Measured at the end of training on data that it was not trained on; `loss` is the training
loss.

## Training

{run.pairs:,} pairs, of which {skipped_text}; {run.validation_pairs:,} further pairs were held out.
{run.steps:,} steps of {run.batch_size:,} pairs in {duration(seconds)} on {run.processes} process(es) \
({run.device}, {run.precision}), with cloob {__version__}, torch {torch.__version__} and Python \
{platform.python_version()}.

```json
{json.dumps(config.recipe, indent=2)}
```
"""


_USAGE = """\
## Use

```sh
cloob classify PICTURES --labels labels.txt --model MODEL
cloob embed PICTURES -o embeddings.npy --model MODEL
```

```python
import cloob_cli

model = cloob_cli.load("MODEL")
image_embeddings = model.encode_image(model.preprocess(image)[None])
text_embeddings = model.encode_text(model.tokenize(["a cat", "a dog"]))
```"""


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
