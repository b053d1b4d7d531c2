"""Pairs in tar files as img2dataset writes them: members KEY.jpg, KEY.txt and KEY.json beside one another."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from cloob_cli.data.image_folder import suffixes
from cloob_cli.data.preprocess import open_image
from cloob_cli.data.sources.columns import caption_list
from cloob_cli.data.sources.data_fingerprint import Part, digest, short_names
from cloob_cli.data.sources.tar_index import index_tar, read_member
from cloob_cli.errors import DataError, Failure, ImageError
from cloob_cli.strict_model import nearest

_TRIED = 8  # samples whose .json is read at once, so that a wrong key fails within seconds
_CAPTION_SUFFIXES = ("txt", "text", "caption", "json")


_Place = tuple[int, int]  # offset and size


class WebdatasetSource:
    """An index of the members, made from the tar headers alone, so that any sample is read with one seek.

    A sample's caption is its .txt, or the field `caption_key` ("caption") of its .json; `image_key` and `caption_key`
    may also name a suffix, like "png" or "txt".

    Attributes:
        unusable: what is left out: samples without an image or a caption, files without a sample,
            and what is lost of a damaged file.

    Raises:
        DataError: a file cannot be opened or is compressed, or there is not a single sample with image and caption.
    """

    blocks = None

    def __init__(self, files: list[Path], image_key: str | None, caption_key: str | None) -> None:
        self._files = files
        self._image_suffixes = {image_key.lstrip(".")} if image_key else {s.lstrip(".") for s in suffixes()}
        plain = caption_key is not None and caption_key.lstrip(".") in _CAPTION_SUFFIXES
        self._field = "caption" if plain or caption_key is None else caption_key
        self._caption_suffixes: tuple[str, ...] = _CAPTION_SUFFIXES
        if caption_key is not None:
            self._caption_suffixes = (caption_key.lstrip("."),) if plain else ("json",)
        self.unusable: list[Failure] = []
        keys: list[str] = []
        places: list[tuple[int, int, int, int, int, bool]] = []
        counts = []
        for number, path in enumerate(files):
            found = self._index(path)
            counts.append(len(found))
            for key, (image, caption, is_json) in found.items():
                keys.append(key)
                places.append((number, *image, *caption, is_json))
        if not keys:
            first, reason = next((entry for entry in self.unusable if entry.name == str(files[0])), self.unusable[0])
            raise DataError(
                f"{first} {reason}",
                "expected members like 000000000.jpg and 000000000.txt; name others with data.image_key and "
                "data.caption_key",
            )
        self._keys = pa.array(keys, pa.large_string())
        self._places = np.array(places, dtype=np.int64).reshape(-1, 6)
        self._counts = counts
        self._check_field()

    def __len__(self) -> int:
        return len(self._keys)

    def files(self) -> list[Path]:
        return self._files

    def name(self, index: int) -> str:
        return f"{self._files[int(self._places[index, 0])]}/{self._keys[index].as_py()}"

    def captions(self, index: int) -> list[str]:
        file, _, _, offset, size, is_json = self._places[index].tolist()
        text = self._read(file, offset, size).decode("utf-8", "replace")
        if not is_json:
            return caption_list([text.strip()])
        try:
            return caption_list(json.loads(text).get(self._field))
        except (ValueError, AttributeError):
            return []

    def _check_field(self) -> None:
        """Raise DataError where the captions are a field of JSON files and none of some of them has it."""
        seen: Counter[str] = Counter()
        for index in np.unique(np.linspace(0, len(self) - 1, _TRIED).astype(np.int64)).tolist():
            file, _, _, offset, size, is_json = self._places[index].tolist()
            try:
                fields = json.loads(self._read(file, offset, size)) if is_json else None
            except (ImageError, ValueError):
                continue
            if not isinstance(fields, dict) or self._field in fields:
                return
            seen.update(fields)
        if seen:
            near = nearest(self._field, seen)
            hint = f"; did you mean {near!r}?" if near else "; name one with data.caption_key"
            raise DataError(
                f"the .json files in {self._files[0]} have no key {self._field!r}",
                f"keys found: {', '.join(sorted(seen))}{hint}",
            )

    def image(self, index: int, size_hint: int | None = None) -> Image.Image:
        file, offset, size, *_ = self._places[index].tolist()
        return open_image(self._read(file, offset, size), size_hint)

    def _read(self, file: int, offset: int, size: int) -> bytes:
        return read_member(self._files[file], offset, size)

    def parts(self) -> list[Part]:
        found = []
        first = 0
        for name, path, count in zip(short_names(self._files), self._files, self._counts, strict=True):
            if count:
                rows = slice(first, first + count)
                keys = self._keys[rows].to_pylist()
                found.append(Part(name, count, path.stat().st_size, digest([*keys, self._places[rows, 1:].tobytes()])))
            first += count
        return found

    def _index(self, path: Path) -> dict[str, tuple[_Place, _Place, bool]]:
        """The samples of a file by their keys; what is left out goes to `unusable`."""
        images: dict[str, _Place] = {}
        captions: dict[str, tuple[int, _Place, bool]] = {}
        seen: Counter[str] = Counter()
        index = index_tar(path)
        for member in index.members:
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            key, suffix = f"{folder}/{stem}" if folder else stem, suffix.lower()
            seen[suffix] += 1
            place = (member.offset, member.size)
            if suffix in self._image_suffixes:
                images.setdefault(key, place)
            elif suffix in self._caption_suffixes:
                rank = self._caption_suffixes.index(suffix)
                if key not in captions or rank < captions[key][0]:
                    captions[key] = (rank, place, suffix == "json")
        found = {key: (place, *captions[key][1:]) for key, place in images.items() if key in captions}
        if not found:
            shown = ", ".join(f"{count} .{suffix}" for suffix, count in sorted(seen.items())) or "no files"
            damage = f"; {index.damage}" if index.damage else ""
            reason = f"holds no sample with an image and a caption: {shown}{damage}"
            self.unusable.append(Failure(str(path), reason))
            return found
        if index.damage:
            self.unusable.append(Failure(str(path), index.damage))
        self.unusable += [Failure(f"{path}/{key}", "no caption") for key in images if key not in captions]
        self.unusable += [Failure(f"{path}/{key}", "no image") for key in captions if key not in images]
        return found
