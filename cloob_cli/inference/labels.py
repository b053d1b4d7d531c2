"""Files of labels, of prompt templates and of texts: UTF-8, one entry a line, which ends in LF, CR LF or CR.

A label file:

    # whole lines may be comments, and the rest of a line after " # "
    cat
    dog: puppy | hound          synonyms: a class is the mean of its label and all its synonyms
    12\\: noon                   a backslash before : | > and # makes it part of the text (here "12: noon")

Labels themselves may hold colons ("keycap: 1", "keycap: 2"). So where reading colons as "label: synonym" would give
two lines the same label, lines with a colon but no `|` are whole labels.

`animal > bird > robin` is the label robin in a tree. A line states who stands below whom, so `animal > bird` and
`bird > robin` say the same; each name has one place in the tree.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cloob_cli.errors import InputError, LabelError

_COMMENT = re.compile(r"(?:^#|\s#\s).*")
_COLON = re.compile(r"(?<!\\):\s+")
_BAR = re.compile(r"(?<!\\)\|")
_ABOVE = re.compile(r"(?<=\s)>(?=\s)")
_ESCAPED = re.compile(r"\\([:|#>])")


@dataclass(frozen=True)
class Label:
    """A class: `name` is what results show; `names` are all texts that stand for it, the name first.

    `above` are the names of the tree above it, the root first.
    """

    name: str
    names: tuple[str, ...]
    above: tuple[str, ...] = ()

    @property
    def path(self) -> tuple[str, ...]:
        """The names from the root of the tree to this one; of a label without a tree just its name."""
        return (*self.above, self.name)


def read_labels(path: Path | None, further: Sequence[str] = ()) -> list[Label]:
    """The labels of a file, in its order, and then those of `further`, each written like a line of a file.

    Raises:
        LabelError: not readable, not UTF-8 text, without a label, an empty label, or one that stands there twice; a
            tree with a loop, or with a name in two places.
    """
    lines = []
    if path is not None:
        numbered = [(number, _without_comment(line)) for number, line in read_lines(path, LabelError)]
        lines = [(f"{path} line {number}", text) for number, text in numbered if text]
        if not lines:
            raise LabelError(f"{path}: holds no label", "one label a line, like: dog: puppy | hound")
    lines += [(f"--label '{text}'", text.strip()) for text in further]
    if "" in (text for _, text in lines):
        raise LabelError("a --label is empty", "like: --label 'dog: puppy | hound'")
    for where, text in lines:
        if any("\ud800" <= c <= "\udfff" for c in text):  # bytes of a command line
            raise LabelError(f"{where} is not UTF-8")
    labels = [_parse(text, where, split_colon=True) for where, text in lines]
    if len({label.name for label in labels}) < len(labels):
        labels = [_parse(text, where, split_colon=False) for where, text in lines]
    _refuse_duplicates([(where, label.name) for (where, _), label in zip(lines, labels, strict=True)])
    return _in_tree([where for where, _ in lines], labels)


def read_templates(path: Path) -> list[str]:
    """The templates of a file, in its order, each once: lines with `{c}` or `{}` where the class name goes.

    Raises:
        LabelError: not readable, not UTF-8 text, without a template, or a line without a place for the name.
    """
    templates = []
    for number, line in read_lines(path, LabelError):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if "{c}" not in text and "{}" not in text:
            raise LabelError(f"{path} line {number}: no {{c}} in the template '{text}'", "like: a photo of a {c}")
        templates.append(text)
    if not templates:
        raise LabelError(f"{path}: holds no template", "one template a line, like: a photo of a {c}")
    return list(dict.fromkeys(templates))


def read_texts(path: Path) -> Iterator[str]:
    """The texts of a file, one a line, stripped, empty lines left out; read as they are asked for.

    Raises:
        InputError: not readable or not UTF-8 text.
    """
    return (text for _, line in read_lines(path, InputError) if (text := line.strip()))


def read_lines(path: Path, error: type[InputError]) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 text file, with or without byte order mark."""
    hint = "save it as UTF-8 text"
    try:
        # What is not UTF-8 stays in its line until that is looked at. Lines end as on any system, and at no other
        # character that str.splitlines() knows.
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline=None) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.encode("utf-8")
                except UnicodeEncodeError:
                    raise error(f"{path} line {number}: is not UTF-8", hint) from None
                if "\0" in line:
                    raise error(f"{path} line {number}: holds a null character, so it is not UTF-8 text", hint)
                yield number, line.removesuffix("\n")
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from None


def _without_comment(line: str) -> str:
    return _COMMENT.sub("", line.strip()).strip()


def _parse(text: str, where: str, split_colon: bool) -> Label:
    has_bar = _BAR.search(text) is not None
    name, synonyms = text, ""
    if (has_bar or split_colon) and (colon := _COLON.search(text)):
        name, synonyms = text[: colon.start()], text[colon.end() :]
    elif has_bar:
        name, synonyms = _BAR.split(text, maxsplit=1)
    *above, name = (_plain(part) for part in _ABOVE.split(f" {name} "))
    texts = [name, *map(_plain, _BAR.split(synonyms))]
    if not name and not above:
        raise LabelError(f"{where}: no label before the colon", "like: dog: puppy | hound")
    if not name or not all(above):
        raise LabelError(f"{where}: nothing stands beside a >", "like: animal > bird > robin")
    return Label(name, tuple(dict.fromkeys(part for part in texts if part)), tuple(above))


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text).strip()


def _in_tree(places: list[str], labels: list[Label]) -> list[Label]:
    """The labels with everything above them, which may stand on several lines."""
    parents: dict[str, str] = {}
    for where, label in zip(places, labels, strict=True):
        for parent, child in itertools.pairwise(label.path):
            known = parents.setdefault(child, parent)
            if known != parent:
                raise LabelError(
                    f"{where}: '{child}' stands below '{parent}', and elsewhere below '{known}'",
                    "each name has one place in the tree",
                )
    found = []
    for where, label in zip(places, labels, strict=True):
        above: list[str] = []
        name = label.name
        while name in parents:
            name = parents[name]
            if name in above or name == label.name:
                raise LabelError(f"{where}: '{label.name}' and '{name}' stand below each other", "a tree has no loops")
            above.append(name)
        found.append(replace(label, above=tuple(reversed(above))))
    return found


def _refuse_duplicates(placed: list[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for where, name in placed:
        if name in first:
            # Within one file its lines are told by their numbers alone.
            file, _, line = first[name].rpartition(" line ")
            place = f"on line {line}" if file and where.startswith(f"{file} line ") else f"in {first[name]}"
            raise LabelError(
                f"{where}: the label '{name}' stands already {place}",
                "give each label once, with synonyms after a colon: dog: puppy | hound",
            )
        first[name] = where
