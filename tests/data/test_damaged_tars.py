"""Tars that are damaged: what can be read is, and the rest is counted and named, never dropped in silence."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pair_files import captions_of, encoded, image, write_tar

from cloob_cli.data.pairs import open_pairs
from cloob_cli.data.sources.tar_index import index_tar
from cloob_cli.data.sources.webdataset import WebdatasetSource
from cloob_cli.errors import DataError
from cloob_cli.recipe import DataSection

COUNT = 9


def write_pax_tar(path: Path, numbers: range) -> Path:
    """As the webdataset library writes it: times with fractions, so that every member has a header of its own kind."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in numbers:
            for suffix, data in {"jpg": encoded(number, form="JPEG"), "txt": captions_of(number)[0].encode()}.items():
                member = tarfile.TarInfo(f"{number:09}.{suffix}")
                member.size, member.mtime = len(data), 1234567890.25  # type: ignore[assignment]
                tar.addfile(member, io.BytesIO(data))
    return path


def headers(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def opened(path: Path) -> WebdatasetSource:
    source = open_pairs(DataSection(train=str(path)))
    assert isinstance(source, WebdatasetSource)
    return source


def check(source: WebdatasetSource, folder: Path, numbers: list[int]) -> None:
    """The source holds exactly these pairs, and they are whole."""
    assert [int(Path(source.name(index)).name) for index in range(len(source))] == numbers
    for index, number in enumerate(numbers):
        assert source.captions(index) == captions_of(number)[:1]
        difference = np.asarray(source.image(index), dtype=int) - np.asarray(image(number), dtype=int)
        assert np.abs(difference).max() <= 20  # JPEG
    assert all(name.startswith(str(folder)) for name, _ in source.unusable)


def spoil(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


@pytest.fixture(params=[write_tar, write_pax_tar], ids=["ustar", "pax"])
def tar(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return request.param(tmp_path / "0.tar", range(COUNT))


def test_a_whole_tar_has_nothing_to_say(tar: Path) -> None:
    source = opened(tar)
    check(source, tar.parent, list(range(COUNT)))
    assert source.unusable == []


def test_a_corrupt_header_costs_one_member(tar: Path) -> None:
    """Also the first header of all, and the one that stands behind a pax header."""
    found = headers(tar)
    for number in (4, 0):
        spoil(tar, found[f"{number:09}.jpg"].offset_data - 512, b"\xff" * 40)  # the last header before the data
    source = opened(tar)
    check(source, tar.parent, [1, 2, 3, 5, 6, 7, 8])
    reasons = dict(source.unusable)
    assert reasons[f"{tar}/000000004"] == "no image"
    assert reasons[f"{tar}/000000000"] == "no image"
    assert "damaged at byte 0 and 1 more place" in reasons[str(tar)]
    assert len(source.unusable) == 3


def test_a_corrupt_pax_header_costs_nothing_that_matters(tmp_path: Path) -> None:
    tar = write_pax_tar(tmp_path / "0.tar", range(COUNT))
    spoil(tar, headers(tar)["000000004.jpg"].offset, b"\xff" * 40)
    source = opened(tar)
    check(source, tmp_path, list(range(COUNT)))
    assert [name for name, _ in source.unusable] == [str(tar)]


def test_an_end_mark_in_the_middle_is_no_end(tar: Path) -> None:
    """As in tars that were joined by `cat`."""
    other = write_tar(tar.with_name("1.part"), range(COUNT, 2 * COUNT))
    tar.write_bytes(tar.read_bytes() + other.read_bytes())
    source = opened(tar)
    check(source, tar.parent, list(range(2 * COUNT)))
    assert source.unusable == []


def test_a_hole_of_zeros_loses_what_lay_there(tar: Path) -> None:
    found = headers(tar)
    start, stop = found["000000002.jpg"].offset, found["000000007.jpg"].offset
    spoil(tar, start, bytes(stop - start))
    source = opened(tar)
    check(source, tar.parent, [0, 1, 7, 8])
    assert source.unusable == [(str(tar), f"damaged at byte {start:,}: {stop - start:,} bytes are lost")]


@pytest.mark.parametrize("where", ["in data", "between members", "in a header"])
def test_an_early_end_is_told(tar: Path, where: str) -> None:
    image = headers(tar)["000000006.jpg"]
    length = {"in data": image.offset_data + 100, "between members": image.offset, "in a header": image.offset + 100}
    tar.write_bytes(tar.read_bytes()[: length[where]])
    source = opened(tar)
    check(source, tar.parent, list(range(6)))
    within = ", within 000000006.jpg" if where == "in data" else ", after 000000005.txt"
    assert dict(source.unusable)[str(tar)] == f"it ends early{within}"


def test_samples_that_lack_something_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in {
            "0.jpg": encoded(0, form="JPEG"), "0.txt": b"image number 0", "1.jpg": encoded(1, form="JPEG"),
            "2.txt": b"text", "3.txt": captions_of(3)[0].encode(), "3.jpg": encoded(3, form="JPEG"),
        }.items():  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = opened(tmp_path / "0.tar")
    check(source, tmp_path, [0, 3])
    tar_name = str(tmp_path / "0.tar")
    assert source.unusable == [(f"{tar_name}/1", "no caption"), (f"{tar_name}/2", "no image")]


@pytest.mark.parametrize("spoilt", [b"", b"no tar" * 1000, bytes(10240)], ids=["no bytes", "garbage", "no members"])
def test_one_useless_shard_of_many_stops_nothing(tmp_path: Path, spoilt: bytes) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", range(3 * number, 3 * number + 3))
    (tmp_path / "1.tar").write_bytes(spoilt)
    source = opened(tmp_path)
    check(source, tmp_path, [0, 1, 2, 6, 7, 8])
    [(name, reason)] = source.unusable
    assert name == str(tmp_path / "1.tar")
    assert "holds no sample with an image and a caption: no files" in reason


def test_a_compressed_tar_says_so_at_once(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", range(3))
    write_tar(tmp_path / "1.tar", range(3))
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(DataError, match="is compressed"):
        opened(tmp_path)


def test_any_damage_ends_in_an_index(tar: Path) -> None:
    """Random bytes at random places: no other error, no endless loop, and only members that lie within the file."""
    whole = tar.read_bytes()
    random = np.random.default_rng(3)
    told = 0
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 30):
            data[place] = random.integers(0, 256)
        tar.write_bytes(data[: random.integers(1, len(data) + 1)])
        index = index_tar(tar)
        told += index.damage is not None
        assert all(member.offset >= 0 and member.offset + member.size <= len(data) for member in index.members)
    assert told > 50


def test_a_negative_size_does_not_turn_the_reader_back(tar: Path) -> None:
    member = headers(tar)["000000004.jpg"]
    header = bytearray(tar.read_bytes()[member.offset_data - 512 : member.offset_data])
    header[124:136] = (2**96 - 100_000).to_bytes(12, "big")  # base 256, as tarfile reads it: -100,000
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    spoil(tar, member.offset_data - 512, bytes(header))
    check(opened(tar), tar.parent, [0, 1, 2, 3, 5, 6, 7, 8])
