"""Texts for a data set's classes from a file of labels."""

from __future__ import annotations

from collections.abc import Sequence

from cloob_cli.errors import LabelError
from cloob_cli.text_format import counted

Labels = Sequence[tuple[str, Sequence[str]]]  # (label, all texts that stand for it)


def class_texts(classes: Sequence[str], labels: Labels, where: str) -> list[list[str]]:
    """For each class the texts of its label: by name where all names are alike, or else in the order of both.

    Case, `_` and `-` make no difference to names.

    Raises:
        LabelError: the labels are neither the classes' names nor as many.
    """
    by_name = {_plain(name): list(texts) for name, texts in labels}
    plain = [_plain(name) for name in classes]
    if set(plain) == by_name.keys():
        return [by_name[name] for name in plain]
    if len(labels) == len(classes):
        return [list(texts) for _, texts in labels]
    missing = next((name for name in classes if _plain(name) not in by_name), classes[0])
    raise LabelError(
        f"{where} has {counted(len(labels), 'label')} for {counted(len(classes), 'class', 'classes')}; "
        f"none is called '{missing}'",
        "give one label a class: by the classes' names, or in their order",
    )


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())
