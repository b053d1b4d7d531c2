"""The README.md of a converted model: what it is, where it comes from, how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloob_cli.registry.cards import Card

if TYPE_CHECKING:
    from cloob_cli.core.config import ModelConfig


def model_card(name: str, config: ModelConfig, card: Card | None) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads."""
    front = ["---", "library_name: cloob", "pipeline_tag: zero-shot-image-classification", "tags: [cloob, clip]"]
    if card and card.license:
        front.append(f"license: {card.license.lower()}")
    if card and card.languages:
        front.append(f"language: [{', '.join(card.languages)}]")
    parts = ["\n".join([*front, "---"]), f"# {name}"]
    if card:
        parts.append(f"{card.summary}. Trained by its authors on {card.data}.")
    facts = [
        f"- input: {config.vision.image_size} x {config.vision.image_size} pixels, {config.text.context_length} tokens",
        f"- embedding: {config.embed_dim} dimensions; inverse temperature {config.inv_tau:g}",
    ]
    facts += [f"- {label}: {value}" for label, value in _known(config, card)]
    parts.append("\n".join(facts))
    if card and card.scores:
        parts.append("\n".join(_scores(card)))
    parts.append(f"```\ncloob classify PICTURES --labels labels.txt --model {name}\n```")
    return "\n\n".join(parts) + "\n"


def _scores(card: Card) -> list[str]:
    """A table; with a column for the CLIP that was trained beside the model, where one was."""
    beside = any(score.clip is not None for score in card.scores)
    clip = ["CLIP, same data"] if beside else []
    rows = [["data", "measure", "score", *clip, "by"], ["---"] * (4 + beside)]
    for score in card.scores:
        clip = [f"{score.clip:g} %" if score.clip is not None else ""] if beside else []
        rows.append([score.dataset, score.metric, f"{score.value:g} %", *clip, score.by])
    return [f"| {' | '.join(row)} |" for row in rows]


def _known(config: ModelConfig, card: Card | None) -> list[tuple[str, str]]:
    source = config.source
    known = [("converted from", source.get("origin")), ("sha256 of the original", source.get("sha256"))]
    if card:
        known += [
            ("license", card.license),
            ("note", card.license_note),
            ("home", card.homepage),
            ("paper", card.paper),
        ]
    return [(label, str(value)) for label, value in known if value]
