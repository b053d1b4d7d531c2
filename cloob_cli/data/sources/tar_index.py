"""An index of a tar file: the places of its members, also where it is damaged.

The reading is tarfile's. By itself it stops without a word at the first header that it cannot read, wherever that is;
here it goes on behind it, and what was passed over is told.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cloob_cli.errors import DataError, ImageError
from cloob_cli.text_format import counted

_BLOCK = tarfile.BLOCKSIZE
_END_MARK = 2 * _BLOCK  # of zeros
_PADDING = tarfile.RECORDSIZE + _END_MARK  # zeros that may lie between two tars that were joined
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True)
class Member:
    """A whole file in a tar file: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarIndex:
    """The members of a tar file in their order, and what is wrong with it, if anything."""

    members: list[Member]
    damage: str | None


def index_tar(path: Path) -> TarIndex:
    """Find the members by their headers alone, without reading what they hold.

    Raises:
        DataError: the file cannot be read, or it is compressed.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(6).startswith(COMPRESSED):
                raise DataError(f"{path} is compressed, so its members cannot be read singly", "unpack it: gunzip FILE")
            scan = TarScan(stream)
            members = list(scan.members())
            damage = scan.damage()
            return TarIndex(members[:-1] if scan.is_cut else members, damage)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror or problem}") from None


def read_member(path: Path, offset: int, size: int) -> bytes:
    """Read `size` bytes of a tar file from `offset` on.

    Raises:
        ImageError: the file cannot be read or ends before.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
    except OSError as problem:
        raise ImageError(f"cannot be read: {problem.strerror}") from None
    if len(data) < size:
        raise ImageError("the tar file is truncated")
    return data


class TarScan:
    """The members of a tar file one after the other, and then what is wrong with it.

    Between two members the stream may be read at any place.

    Attributes:
        is_cut: the file ends within the last member; known once `damage` was asked for.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._length = stream.seek(0, 2)
        self._last: Member | None = None
        self._gaps: list[tuple[int, int]] = []  # from, to: where a header should be and none is
        self._expected = 0  # where the next header should be
        self.is_cut = False

    def members(self) -> Iterator[Member]:
        """Yield the members in their order, found by their headers alone."""
        start = 0
        while start < self._length:
            self._stream.seek(start)
            try:
                yield from self._read_members()
                break
            except (tarfile.TarError, ValueError, OverflowError):
                # Such as a long name's header without its file's. Go on behind what was read last.
                start = max(start + _BLOCK, -(-self._stream.tell() // _BLOCK) * _BLOCK)

    def _read_members(self) -> Iterator[Member]:
        with tarfile.open(fileobj=self._stream, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                if member.size < 0:
                    self._stream.seek(member.offset_data)
                    raise ValueError("a negative size, at which tarfile would turn back")
                if member.offset > self._expected:
                    self._gaps.append((self._expected, member.offset))
                if member.issparse():  # its size is not that of what is stored
                    self._expected = tar.offset
                    continue
                stored = member.size if member.isreg() else 0
                self._expected = member.offset_data + -(-stored // _BLOCK) * _BLOCK
                if member.isreg():
                    self._last = Member(member.name, member.offset_data, member.size)
                    yield self._last

    def damage(self) -> str | None:
        """Describe what is wrong with the file, after its last member; None where nothing is."""
        end_mark = max(self._expected, self._length - _END_MARK)
        ends_early = self._length - end_mark < _END_MARK or not self._is_zero(end_mark, self._length)
        if self._length - self._expected >= _BLOCK:
            self._gaps.append((self._expected, self._length))
        damaged = [gap for gap in self._gaps if not (self._is_zero(*gap) and self._is_padding(*gap))]
        texts = []
        if damaged:
            more = f" and {counted(len(damaged) - 1, 'more place')}" if len(damaged) > 1 else ""
            lost = sum(stop - start for start, stop in damaged)
            texts.append(
                f"damaged at byte {damaged[0][0]:,}{more}: {counted(lost, 'byte')} {'is' if lost == 1 else 'are'} lost"
            )
        if ends_early and self._last:
            self.is_cut = self._last.offset + self._last.size > self._length
            texts.append(f"it ends early, {'within' if self.is_cut else 'after'} {self._last.name}")
        return "; ".join(texts) or None

    def _is_padding(self, start: int, stop: int) -> bool:
        """True where zeros may be padding: at the end, or few of them. A failed copy leaves many in the middle."""
        return stop == self._length or stop - start <= _PADDING

    def _is_zero(self, start: int, stop: int) -> bool:
        self._stream.seek(start)
        while start < stop:
            piece = self._stream.read(min(1 << 20, stop - start))
            if not piece or any(piece):
                return not piece
            start += len(piece)
        return True
