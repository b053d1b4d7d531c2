"""Groups of duplicates: connected rows, perceptual hashes, and what a group promises."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from cloob_cli.atomic_files import sha256_of
from cloob_cli.inference.duplicates import components
from cloob_cli.inference.duplicates.components import connected_rows
from cloob_cli.inference.duplicates.groups import Copy, Limits, duplicate_groups, identical_index
from cloob_cli.inference.duplicates.perceptual_hash import hash_of, perceptual_hashes
from cloob_cli.inference.index.file_stamp import Stamp
from cloob_cli.inference.index.reading import StoredIndex


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 64]), st.floats(-0.5, 0.999))
def test_connected_rows_are_the_components_of_the_graph_of_near_rows(
    count: int, seed: int, tile: int, least: float
) -> None:
    rows = unit(np.random.default_rng(seed).normal(size=(count, 3)))
    chosen = np.random.default_rng(seed).permutation(count)[: max(1, count - 3)]
    near = np.array([[float(np.dot(rows[i], rows[j])) for j in chosen] for i in chosen])
    if np.abs(near - least).min() < 1e-6:
        return  # rounding decides
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_TILE", tile)
        found = sorted(tuple(sorted(places)) for places in connected_rows(rows, chosen, least))
    _, labels = connected_components(csr_array(near >= least), directed=False)
    expected = [tuple(np.flatnonzero(labels == label)) for label in range(labels.max() + 1)]
    assert found == sorted(places for places in expected if len(places) > 1)


@given(st.integers(0, 2**32 - 1))
def test_the_hash_has_the_signs_of_the_lowest_frequencies(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    gray = np.asarray(pixels, np.float64) @ [0.299, 0.587, 0.114]
    low = dctn(gray, norm="ortho")[:8, :8].reshape(-1)
    bits = low > np.median(low[1:]) + 4
    assert f"{hash_of(pixels):064b}" == "0" + "".join("01"[int(bit)] for bit in bits[1:])


@pytest.mark.parametrize("color", [(255, 255, 255), (200, 10, 30), (77, 91, 13)])
def test_flat_images_have_no_bits(color: tuple[int, int, int]) -> None:
    """All frequencies but the mean are 0; rounding must not decide, else no two blank pages are alike."""
    assert hash_of(np.full((32, 32, 3), color, np.uint8)) == 0


@given(st.integers(0, 2**32 - 1))
def test_frequencies_that_symmetry_makes_zero_have_no_bits(seed: int) -> None:
    """32 of the 63 are 0, and so is the median."""
    half = np.random.default_rng(seed).integers(0, 256, (32, 16, 1), dtype=np.uint8)
    pixels = np.repeat(np.concatenate([half, half[:, ::-1]], axis=1), 3, axis=2)
    bits = f"{hash_of(pixels):064b}"
    assert {bits[8 * down + across] for down in range(8) for across in (1, 3, 5, 7)} == {"0"}


def drawing(seed: int) -> Image.Image:
    """Soft blobs, which scaling hardly changes."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)


def index_of(paths: list[Path], rows: np.ndarray) -> StoredIndex:
    stamps = [Stamp(path.stat().st_size, None, sha256_of(path)) for path in paths]
    return StoredIndex([str(path) for path in paths], unit(rows), stamps, {})


def groups_of(index: StoredIndex, limits: Limits | None = Limits()) -> list[list[Copy]]:
    return list(duplicate_groups(index, Path, limits, workers=0))


def names(groups: list[list[Copy]]) -> list[list[str]]:
    return [[copy.path.name for copy in group] for group in groups]


def test_a_copy_needs_both_a_near_embedding_and_a_near_hash(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    drawing(0).save(paths[0])
    drawing(0).resize((48, 48)).save(paths[1])  # near in both
    drawing(1).save(paths[2])  # another image with a near embedding
    drawing(0).resize((40, 40)).save(paths[3])  # the same image with an embedding far away
    a, b = np.eye(4)[0], np.eye(4)[1]
    index = index_of(paths, np.stack([a, a + 0.01 * b, a + 0.02 * b, b]))
    [group] = groups_of(index)
    assert names([group]) == [["a.png", "b.png"]]
    best, near = group
    assert (best.match, best.cosine, best.bits) == ("best", None, None)
    assert near.match == "near"
    assert near.cosine is not None
    assert near.cosine > 0.99
    assert near.bits is not None
    assert near.bits <= 8
    assert groups_of(index, None) == []


def test_the_best_copy_has_the_most_pixels_then_the_most_bytes_then_the_shortest_path(tmp_path: Path) -> None:
    small, large, compressed, longer = (tmp_path / name for name in ("s.png", "l.bmp", "c.png", "longer-name.bmp"))
    drawing(0).resize((32, 32)).save(small)
    drawing(0).save(large)
    drawing(0).save(compressed)
    longer.write_bytes(large.read_bytes())
    rows = np.tile(np.eye(4)[0], (4, 1))
    [group] = groups_of(index_of([small, longer, compressed, large], rows))
    assert [copy.path.name for copy in group] == ["l.bmp", "longer-name.bmp", "c.png", "s.png"]
    assert [copy.match for copy in group] == ["best", "exact", "near", "near"]


def test_a_chain_is_divided_around_its_best_images(tmp_path: Path) -> None:
    """Each image is near to the next one, and the ends are far from each other."""
    count = 12
    paths = []
    for place in range(count):
        paths.append(tmp_path / f"{place:02d}.png")
        drawing(0).resize((64 - place, 64 - place)).save(paths[-1])
    angles = np.arange(count) * 0.3  # cos 0.3 = 0.955, cos 0.6 = 0.825
    index = index_of(paths, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    [together] = connected_rows(index.rows, np.arange(count), 0.9)
    assert len(together) == count
    found = groups_of(index)
    assert names(found) == [[f"{place:02d}.png", f"{place + 1:02d}.png"] for place in range(0, count, 2)]


def test_an_image_that_is_gone_or_broken_belongs_to_no_group(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, side in zip(paths, (64, 48, 40), strict=True):
        drawing(0).resize((side, side)).save(path)
    index = index_of(paths, np.tile(np.eye(4)[0], (3, 1)))
    paths[0].unlink()
    paths[1].write_bytes(b"no image")
    assert groups_of(index) == []


def test_hashes_come_in_order_and_of_what_cannot_be_read_none(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    drawing(0).save(paths[0])
    paths[1].write_bytes(b"no image")
    drawing(1).save(paths[2])
    first, none, last = perceptual_hashes(paths, workers=2)
    assert none is None
    assert first == perceptual_hashes(paths[:1])[0]
    assert first != last


def test_only_files_of_equal_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"12")
    (tmp_path / "c").write_bytes(b"34")
    (tmp_path / "d").write_bytes(b"567")
    read: list[int] = []
    failures: list[object] = []
    paths = [tmp_path / name for name in "abcde"]
    index = identical_index(paths, failures.append, lambda: read.append(1))
    assert len(read) == 3
    assert [failure.name for failure in failures] == [str(tmp_path / "e")]  # type: ignore[attr-defined]
    assert names(groups_of(index, None)) == [["a", "b"]]


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_links_to_one_file_are_no_copies(tmp_path: Path) -> None:
    """Else a link could be called the best copy, and the file that it leads to one that may go."""
    file, link, hard = tmp_path / "with-a-long-name.png", tmp_path / "a.png", tmp_path / "b.png"
    drawing(0).save(file)
    link.symlink_to(file.name)
    hard.hardlink_to(file)
    paths = [link, hard, file]
    index = index_of(paths, np.tile(np.eye(4)[0], (3, 1)))
    assert groups_of(index) == []
    assert groups_of(identical_index(paths, pytest.fail), None) == []
    smaller = tmp_path / "0.png"
    drawing(0).resize((48, 48)).save(smaller)
    [group] = groups_of(index_of([smaller, link, file], np.tile(np.eye(4)[0], (3, 1))))
    assert [(copy.path.name, copy.match) for copy in group] == [(file.name, "best"), ("0.png", "near")]


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_a_link_out_of_the_folder_comes_after_files(tmp_path: Path) -> None:
    elsewhere, link, file = tmp_path / "elsewhere.png", tmp_path / "a.png", tmp_path / "longer.png"
    drawing(0).save(elsewhere)
    link.symlink_to(elsewhere)
    file.write_bytes(elsewhere.read_bytes())
    os.utime(elsewhere, ns=(1, 1))  # the link's file is the earlier one
    [group] = groups_of(index_of([link, file], np.tile(np.eye(4)[0], (2, 1))))
    assert [copy.path for copy in group] == [file, link]


def test_a_file_that_is_gone_or_changed_is_no_copy_of_one_that_is_there(tmp_path: Path) -> None:
    gone, changed, there = (tmp_path / name for name in ("a.png", "b.png", "there.png"))
    drawing(0).save(gone)
    shutil.copy(gone, changed)
    shutil.copy(gone, there)
    index = index_of([gone, changed, there], np.tile(np.eye(4)[0], (3, 1)))
    assert names(groups_of(index)) == [["a.png", "b.png", "there.png"]]
    gone.unlink()
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1  # as many bytes
    changed.write_bytes(data)
    assert groups_of(index) == []
    assert groups_of(index, None) == []


def test_of_equal_copies_the_earliest_is_the_best(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.bmp", "b.bmp", "c.bmp", "earliest.bmp", "other.bmp")]
    for path in paths[:4]:
        drawing(0).save(path)
    drawing(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).transpose(Image.Transpose.FLIP_LEFT_RIGHT).point(
        lambda value: min(value + 1, 255)
    ).save(paths[4])  # as many pixels and bytes
    for path, time in zip(paths, (3, 2, 2, 1, 0), strict=True):
        os.utime(path, ns=(0, time * 10**9))
    [group] = groups_of(index_of(paths, np.tile(np.eye(4)[0], (5, 1))))
    assert [(copy.path.name, copy.match) for copy in group] == [
        ("other.bmp", "best"), ("earliest.bmp", "near"), ("b.bmp", "near"), ("c.bmp", "near"), ("a.bmp", "near"),
    ]  # fmt: skip
