"""Checkpoints that ask for code to be run are refused, and nothing of them runs."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloob_cli.convert import convert_checkpoint
from cloob_cli.convert.haiku_pickle import read_haiku_pickle
from cloob_cli.errors import ConversionError, UnsafeCheckpointError
from tests.helpers import hostile_pickles as hostile

HELPER = Path(hostile.__file__)


def run(*arguments: str) -> str:
    finished = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_none_of_them_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "files"
    canary.mkdir()
    folder.mkdir()
    pickles, torch_files = hostile.haiku_pickles(canary), hostile.torch_checkpoints(canary)
    for name, data in pickles.items():
        (folder / f"{name}.pkl").write_bytes(data)
    for name, data in torch_files.items():
        (folder / f"{name}.pt").write_bytes(data)
    outcomes: dict[str, dict[str, str]] = {}
    for line in run(str(HELPER), str(folder)).splitlines():
        name, format, outcome = line.split()
        outcomes.setdefault(name, {})[format] = outcome
    assert list(canary.iterdir()) == []
    assert len(outcomes) == len(pickles) + len(torch_files) >= 50
    assert all(set(tries.values()) <= {"UnsafeCheckpointError", "ConversionError"} for tries in outcomes.values())
    not_named = {name for name in pickles if outcomes[name]["crowsonkb"] != "UnsafeCheckpointError"}
    not_named |= {name for name in torch_files if outcomes[name]["mljku"] != "UnsafeCheckpointError"}
    assert not_named == set()


@pytest.mark.parametrize("name", ["os_system", "eval", "getattr_chain", "attrgetter", "protocol_0", "inst", "obj"])
def test_the_same_files_do_run_under_pickle(name: str, tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    file = tmp_path / "evil.pkl"
    file.write_bytes(hostile.haiku_pickles(tmp_path)[name])
    run("-c", "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", str(file))
    assert (tmp_path / name).exists()


def test_the_same_file_does_run_under_torch_s_unrestricted_reader(tmp_path: Path) -> None:
    file = tmp_path / "evil.pt"
    file.write_bytes(hostile.torch_checkpoints(tmp_path)["pt_system"])
    run("-c", "import sys, torch; torch.load(sys.argv[1], weights_only=False)", str(file))
    assert (tmp_path / "pt_system").exists()


def test_the_message_names_what_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(hostile.haiku_pickles(tmp_path)["os_system"])
    with pytest.raises(UnsafeCheckpointError, match=r"the name 'os\.system'") as raised:
        convert_checkpoint(tmp_path / "a.pkl")
    assert "nothing of it was run" in str(raised.value.hint)
    (tmp_path / "a.pt").write_bytes(hostile.torch_checkpoints(tmp_path)["pt_system"])
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system|nt\.system") as raised:
        convert_checkpoint(tmp_path / "a.pt")
    assert "weights_only=False" not in raised.value.message + str(raised.value.hint)


def floats(shape: tuple[int, ...], data: object) -> hostile.Calls:
    number_type = hostile.Calls(hostile.DTYPE, "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
    return hostile.Calls(hostile.RECONSTRUCT, hostile.NDARRAY, (0,), b"b", state=(1, shape, number_type, False, data))


def nested_tuple(depth: int) -> bytes:
    """((((), ()), ((), ())), ...): tiny, but hashing it takes 2^depth steps."""
    step = pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00" + pickle.TUPLE2
    return pickle.EMPTY_TUPLE + step * depth


def same_data_twice() -> bytes:
    data = b"\0" * 4096
    return hostile.dumps({"params": [floats((1024,), data), floats((1024,), data)]})


BOMBS = {
    "a_length_that_lies": hostile.program(pickle.BINBYTES8 + struct.pack("<Q", 2**40)),
    "a_text_that_lies": hostile.program(pickle.BINUNICODE8 + struct.pack("<Q", 2**62)),
    "a_frame_that_lies": hostile.program(pickle.FRAME + struct.pack("<Q", 2**50)),
    "a_bytearray": hostile.program(pickle.BYTEARRAY8 + struct.pack("<Q", 2**40)),
    "a_memo_index": hostile.program(pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1)),
    "a_shape_that_lies": hostile.dumps({"params": floats((2**40,), b"\0" * 4)}),
    "a_shape_of_many_axes": hostile.dumps({"params": floats((1,) * 5000, b"\0" * 4)}),
    "a_negative_shape": hostile.dumps({"params": floats((-1, -1), b"\0" * 4)}),
    "a_shape_of_floats": hostile.dumps({"params": floats((1.0,), b"\0" * 4)}),
    "data_that_is_shared": same_data_twice(),
    "a_key_that_is_long_to_hash": hostile.program(pickle.EMPTY_DICT, nested_tuple(60), pickle.NONE, pickle.SETITEM),
    "a_tree_that_is_long_to_walk": hostile.program(hostile.GOOD_DICT, nested_tuple(60), pickle.SETITEM),
    "a_deep_list": hostile.program(pickle.EMPTY_LIST * 100_000 + pickle.APPEND * 99_999),
    "a_list_in_itself": hostile.program(
        pickle.EMPTY_LIST, pickle.BINPUT, b"\x00", pickle.BINGET, b"\x00", pickle.APPEND
    ),
}


def test_two_arrays_that_share_their_data_are_refused(tmp_path: Path) -> None:
    """Some bytes in the file, as many arrays as one likes in memory. Equal data that stand there twice are no such."""
    (tmp_path / "shared.pkl").write_bytes(same_data_twice())
    assert (tmp_path / "shared.pkl").stat().st_size < 2 * 4096
    with pytest.raises(ConversionError, match="two arrays share their data"):
        read_haiku_pickle(tmp_path / "shared.pkl")
    twice = [floats((1024,), bytes(bytearray(4096))) for _ in range(2)]
    (tmp_path / "equal.pkl").write_bytes(hostile.dumps({"params": twice}))
    assert [len(array) for array in read_haiku_pickle(tmp_path / "equal.pkl")["params"]] == [1024, 1024]


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    file = tmp_path / "bomb.pkl"
    file.write_bytes(BOMBS[name])
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises((UnsafeCheckpointError, ConversionError)):
        convert_checkpoint(file, "crowsonkb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert time.process_time() - started < 20  # 2^60 steps would never end


def test_arrays_of_every_number_type_and_order_are_read(tmp_path: Path) -> None:
    """The refusals above are not refusals of everything."""
    import numpy as np

    arrays = {
        "floats": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">f8"),
        "half": np.ones((2, 2), np.float16),
        "whole": np.arange(5),
        "truth": np.array([True, False]),
        "scalar": np.array(3.0, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    for protocol in (3, 4):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"params": [arrays, (1, 2.5, None, "x")]}, protocol=protocol))
        found = read_haiku_pickle(tmp_path / "a.pkl")["params"]
        assert found[1] == (1, 2.5, None, "x")
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[0][name], array)
            assert found[0][name].dtype == array.dtype


def test_flat_mappings_and_device_arrays(tmp_path: Path) -> None:
    """The forms that old jax and haiku write."""
    number_type = hostile.Calls(hostile.DTYPE, "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
    state = (1, (2,), number_type, False, struct.pack("<2f", 1.5, -2.0))
    array = hostile.Calls(
        hostile.DEVICE_ARRAY, hostile.RECONSTRUCT, (hostile.NDARRAY, (0,), b"b"), state, {"weak_type": False}
    )
    (tmp_path / "a.pkl").write_bytes(hostile.dumps({"params": hostile.Calls(hostile.FLAT_MAPPING, {"w": array})}))
    assert read_haiku_pickle(tmp_path / "a.pkl")["params"]["w"].tolist() == [1.5, -2.0]


GOLDEN = Path(__file__).parents[1] / "golden/crowsonkb"
VALID = (GOLDEN / "checkpoint.pkl").read_bytes()
INSTRUCTIONS = [position for _, _, position in pickletools.genops(VALID)]


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(INSTRUCTIONS), st.integers(0, 3), st.integers(0, 255)), min_size=1, max_size=5)
)
def test_damage_of_any_instruction_is_an_expected_error(changes: list[tuple[int, int, int]]) -> None:
    data = bytearray(VALID)
    for position, offset, value in changes:
        data[min(position + offset, len(data) - 1)] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pkl"
        file.write_bytes(data)
        # Some changes only change a number; whatever else happens is one of the two errors.
        with contextlib.suppress(UnsafeCheckpointError, ConversionError):
            model = convert_checkpoint(file, "crowsonkb", config=GOLDEN / "config.json").model
            assert len(model.state_dict()) == len(convert_checkpoint(GOLDEN).model.state_dict())


def test_a_tensor_that_claims_more_than_its_storage(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**40)
    torch.save({"state_dict": {"module.logit_inv_tau": huge}}, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match="claims more numbers than the file holds"):
        convert_checkpoint(tmp_path / "a.pt")


def test_a_compressed_archive(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.logit_inv_tau": torch.zeros(10**6)}}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as source,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(ConversionError, match="a part of it is compressed"):
        convert_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1\x15\x04",
        b"path,label\na.jpg,cat\n",
        b"image,caption\na.jpg,cat\n",
        b"label\ncat\n",
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0\x08\0\0\0",
        b"\xef\xbb\xbfcat\r\n",
        b'[{"a": 1}]',
    ],
    ids=["empty", "parquet", "table", "captions", "labels", "jpeg", "png", "tiff", "text", "json"],
)
def test_a_file_of_another_kind_is_no_checkpoint_and_no_danger(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConversionError, match="is not a checkpoint: neither") as caught:
        convert_checkpoint(tmp_path / "a")
    assert "--help" in str(caught.value.hint)
