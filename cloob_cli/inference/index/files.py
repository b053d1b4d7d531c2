"""The files of an index, in each of the forms that it can have on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cloob_cli.inference.index.layout_parts import Part, find_parts, part_of
from cloob_cli.inference.lance_tables import is_table

Form = Literal["npy", "clip-retrieval", "lance"]

LANCE = ".lance"


@dataclass(frozen=True)
class IndexFiles:
    """The files of an index of images or texts.

    Args:
        embeddings: the rows; with `form` "lance" the folder of the table, which is the index as well.
        index: names the rows, in the column `column`.
        beside: in clip-retrieval's layout the file of the other embeddings: of images' captions, or of images where
            `embeddings` are of texts.
        parts: the pairs of files that are read, in clip-retrieval's layout, the first of which is `embeddings` and
            `index`; other programs write more than one.
    """

    embeddings: Path
    index: Path
    failures: Path
    column: str = "path"
    form: Form = "npy"
    beside: Path | None = None
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, output: Path, form: Form = "npy", *, texts: bool = False) -> IndexFiles:
        """The files of `cloob embed -o output`.

        Args:
            texts: the rows are of texts, not of images.
        """
        column = "text" if texts else "path"
        if form == "lance":
            return cls(output, output, output.with_suffix(".failures.jsonl"), column, form)
        if form == "npy":
            return cls(output, output.with_suffix(".parquet"), output.with_suffix(".failures.jsonl"), column)
        images, captions = output / "img_emb" / "img_emb_0.npy", output / "text_emb" / "text_emb_0.npy"
        metadata, failures = output / "metadata" / "metadata_0.parquet", output / "failures.jsonl"
        if texts:
            return cls(captions, metadata, failures, "caption", form, images)
        return cls(images, metadata, failures, "image_path", form, captions)

    @property
    def all(self) -> list[Path]:
        """Every file, the embeddings first and the failures last."""
        return [*dict.fromkeys([self.embeddings, self.index, *filter(None, [self.beside]), self.failures])]

    @property
    def folders(self) -> list[Path]:
        """The folders that the files lie in."""
        return [*dict.fromkeys(path.parent for path in self.all)]

    @property
    def read_from(self) -> Path:
        """The file of the rows, or the folder where they are in several: what a message about all rows names."""
        return self.embeddings.parent if len(self.parts) > 1 else self.embeddings

    @property
    def has_captions(self) -> bool:
        """True where captions of images are kept, and their embeddings in the file `beside`."""
        return self.form == "clip-retrieval" and self.column == "image_path"

    @property
    def journal(self) -> Path:
        """The folder of the rows of a run that is not finished."""
        return self._hidden("cloob-parts")

    @property
    def caption_journal(self) -> Path:
        """The same for the captions of images."""
        return self._hidden("cloob-captions")

    def _hidden(self, name: str) -> Path:
        if self.form == "clip-retrieval":  # out of the way of programs that list the folders of the layout
            return self.failures.parent / f".{name}"
        return self.embeddings.with_name(f".{self.embeddings.name}.{name}")


def source_files(source: Path) -> IndexFiles | None:
    """The files of an index of images that `source` names: a file or a folder of any form; None where it names none.

    Raises:
        InputError: it is a folder in clip-retrieval's layout that lacks files.
    """
    if source.is_dir():
        if source.suffix.lower() == LANCE and is_table(source):
            return IndexFiles.of(source, "lance")
        return _of_parts(source, find_parts(source))
    if part := part_of(source):
        return _of_parts(source.parent.parent, [part])
    return IndexFiles.of(source.with_suffix(".npy")) if source.suffix.lower() in {".npy", ".parquet"} else None


def _of_parts(folder: Path, parts: Sequence[Part]) -> IndexFiles | None:
    if not parts:
        return None
    layout, first = IndexFiles.of(folder, "clip-retrieval"), parts[0]
    return replace(layout, embeddings=first.embeddings, index=first.metadata, parts=tuple(parts))
