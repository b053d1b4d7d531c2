"""Checkpoints that try to run something: each would create a file of its own name in a given folder.

`python hostile_pickles.py FOLDER` tries to convert every file in FOLDER and prints how each attempt ended.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

GOOD_DICT = b"}\x8c\x06params"  # an empty dict and its first key; the value follows


class Calls:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


class Global:
    """Pickles to a global that need not exist here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(text(obj.module) + text(obj.name) + pickle.STACK_GLOBAL)
        elif isinstance(obj, Calls) and isinstance(obj.reduced[0], Global):
            function, arguments, *state = obj.reduced
            self.save(function)
            self.save(arguments)
            self.write(pickle.REDUCE)
            if state:
                self.save(state[0])
                self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def dumps(obj: Any) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol=4).dump(obj)
    return stream.getvalue()


def program(*parts: bytes) -> bytes:
    """A pickle written by hand: protocol 4, the parts, stop."""
    return pickle.PROTO + b"\x04" + b"".join(parts) + pickle.STOP


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


NDARRAY, DTYPE = Global("numpy", "ndarray"), Global("numpy", "dtype")
RECONSTRUCT = Global("numpy.core.multiarray", "_reconstruct")
FLAT_MAPPING = Global("haiku._src.data_structures", "FlatMapping")
DEVICE_ARRAY = Global("jax._src.device_array", "reconstruct_device_array")


def haiku_pickles(canary: Path) -> dict[str, bytes]:
    """Pickles that would touch `canary/NAME` if their names or instructions were followed."""

    def shell(name: str) -> str:
        return f"{sys.executable} -c \"open(r'{canary / name}', 'w')\""

    def python(name: str) -> str:
        return f"open(r'{canary / name}', 'w')"

    def system(name: str) -> Calls:
        return Calls(Global("os", "system"), shell(name))

    def array(dtype: Any, data: Any) -> Calls:
        return Calls(RECONSTRUCT, NDARRAY, (0,), b"b", state=(1, (1,), dtype, False, data))

    objects = Calls(DTYPE, "O8", False, True)
    floats = Calls(DTYPE, "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
    system_name = named("os", "system")

    return {
        "os_system": dumps({"params": system("os_system")}),
        "posix_system": dumps({"params": Calls(Global("posix", "system"), shell("posix_system"))}),
        "eval": dumps(Calls(Global("builtins", "eval"), python("eval"))),
        "exec": dumps(Calls(Global("builtins", "exec"), python("exec"))),
        "open": dumps(Calls(Global("builtins", "open"), str(canary / "open"), "w")),
        "python_2_name": dumps(Calls(Global("__builtin__", "eval"), python("python_2_name"))),
        "getattr_chain": program(
            named("builtins", "getattr"),
            named("builtins", "__import__"), text("os"), pickle.TUPLE1, pickle.REDUCE, text("system"), pickle.TUPLE2,
            pickle.REDUCE, text(shell("getattr_chain")), pickle.TUPLE1, pickle.REDUCE,
        ),
        "attrgetter": program(
            named("operator", "attrgetter"), text("system"), pickle.TUPLE1, pickle.REDUCE,
            named("importlib", "import_module"), text("os"), pickle.TUPLE1, pickle.REDUCE, pickle.TUPLE1,
            pickle.REDUCE, text(shell("attrgetter")), pickle.TUPLE1, pickle.REDUCE,
        ),
        "partial": program(
            named("functools", "partial"), system_name, text(shell("partial")), pickle.TUPLE2, pickle.REDUCE,
            pickle.EMPTY_TUPLE, pickle.REDUCE,
        ),
        "popen": dumps(Calls(Global("subprocess", "Popen"), [sys.executable, "-c", python("popen")])),
        "copyreg_reconstructor": dumps(
            Calls(Global("copyreg", "_reconstructor"), Global("subprocess", "Popen"), Global("builtins", "type"), 0)
        ),
        "copyreg_newobj": program(
            named("copyreg", "__newobj__"), named("subprocess", "Popen"), pickle.TUPLE1, pickle.REDUCE
        ),
        "nested_pickle": dumps(Calls(Global("pickle", "loads"), dumps(system("nested_pickle")))),
        "run_path": dumps(Calls(Global("runpy", "_run_code"), python("run_path"), {})),
        "numpy_load": dumps(Calls(Global("numpy", "load"), str(canary / "x.npy"), None, True)),
        "numpy_scalar": dumps(
            Calls(Global("numpy.core.multiarray", "scalar"), objects, dumps(system("numpy_scalar")))
        ),
        "dotted_name": program(
            named("numpy", "ndarray.__class__.__base__.__subclasses__"), pickle.EMPTY_TUPLE, pickle.REDUCE
        ),
        "dotted_module": program(
            named("numpy.core.multiarray", "_reconstruct.__globals__"), pickle.EMPTY_TUPLE, pickle.REDUCE
        ),
        # behind an allowed name
        "device_array_function": dumps(
            Calls(DEVICE_ARRAY, Global("os", "system"), (shell("device_array_function"),), (), {})
        ),
        "device_array_of_a_stand_in": dumps(Calls(DEVICE_ARRAY, FLAT_MAPPING, ({},), (), {})),
        "flat_mapping_of_a_call": dumps({"params": Calls(FLAT_MAPPING, system("flat_mapping_of_a_call"))}),
        "reconstruct_a_process": dumps(Calls(RECONSTRUCT, Global("subprocess", "Popen"), (0,), b"b")),
        "reconstruct_a_stand_in": dumps(Calls(RECONSTRUCT, FLAT_MAPPING, (0,), b"b")),
        "object_array_with_a_call": dumps({"params": array(objects, [system("object_array_with_a_call")])}),
        "object_array": dumps({"params": array(objects, [1])}),
        "objects_in_a_float_array": dumps({"params": array(floats, [system("objects_in_a_float_array")])}),
        "list_in_a_float_array": dumps({"params": array(floats, [1.0])}),
        "dtype_of_structures": dumps(
            array(Calls(DTYPE, "f4", False, True, state=(3, "|", None, ("a",), {"a": (1, 0)}, 4, 1, 0)), b"abcd")
        ),
        "dtype_from_a_class": dumps(Calls(DTYPE, Global("builtins", "eval"), False, True)),
        # states for what has none
        "build_on_a_class": program(
            named("numpy", "ndarray"), pickle.NONE, pickle.EMPTY_DICT, text("__setstate__"), system_name,
            pickle.SETITEM, pickle.TUPLE2, pickle.BUILD,
        ),
        "build_attributes_of_a_stand_in": program(
            named("numpy", "ndarray"), pickle.NONE, pickle.EMPTY_DICT, text("function"), named("numpy", "dtype"),
            pickle.SETITEM, pickle.TUPLE2, pickle.BUILD,
        ),
        "build_on_a_function": program(
            named("numpy.core.multiarray", "_reconstruct"), pickle.EMPTY_DICT, text("__code__"), text("x"),
            pickle.SETITEM, pickle.BUILD,
        ),
        "call_of_a_dict": program(pickle.EMPTY_DICT, pickle.EMPTY_TUPLE, pickle.REDUCE),
        "function_as_a_value": program(GOOD_DICT, named("numpy", "ndarray"), pickle.SETITEM),
        # other instructions
        "protocol_0": f"cos\nsystem\n(S'{shell('protocol_0')}'\ntR.".encode(),
        "inst": b"(" + text(shell("inst")) + b"ios\nsystem\n.",
        "obj": b"(" + b"cos\nsystem\n" + text(shell("obj")) + b"o.",
        "newobj": program(named("subprocess", "Popen"), text("x"), pickle.TUPLE1, pickle.NEWOBJ),
        "newobj_ex": program(
            named("subprocess", "Popen"), pickle.EMPTY_TUPLE, pickle.EMPTY_DICT, text("args"), text("x"),
            pickle.SETITEM, pickle.NEWOBJ_EX,
        ),
        "persistent_id": program(text("x"), pickle.BINPERSID),
        "extension": program(pickle.EXT1 + b"\x01"),
        "out_of_band": program(pickle.NEXT_BUFFER),
        "after_good_parameters": program(
            GOOD_DICT, pickle.EMPTY_TUPLE, pickle.SETITEM, system_name, text(shell("after_good_parameters")),
            pickle.TUPLE1, pickle.REDUCE, pickle.POP,
        ),
    }  # fmt: skip


def torch_checkpoints(canary: Path) -> dict[str, bytes]:
    """Files that `torch.save` writes, with calls in them."""
    import os
    import subprocess

    import torch

    def shell(name: str) -> str:
        return f"{sys.executable} -c \"open(r'{canary / name}', 'w')\""

    def saved(obj: Any, new: bool = True) -> bytes:
        stream = io.BytesIO()
        torch.save(obj, stream, _use_new_zipfile_serialization=new)
        return stream.getvalue()

    weights = {"module.logit_inv_tau": torch.zeros(())}
    return {
        "pt_system": saved({"state_dict": weights, "epoch": Calls(os.system, shell("pt_system"))}),
        "pt_old_system": saved({"state_dict": weights, "epoch": Calls(os.system, shell("pt_old_system"))}, new=False),
        "pt_eval": saved(Calls(eval, f"open(r'{canary / 'pt_eval'}', 'w')")),
        "pt_popen": saved({"optimizer": Calls(subprocess.Popen, [sys.executable, "-c", "0"])}),
        "pt_getattr": saved({"optimizer": Calls(getattr, Calls(__import__, "os"), "system")}),
        "pt_torch_load": saved({"state_dict": Calls(torch.load, str(canary / "x"))}),
        "pt_with_code": _torch_script(),
        "pt_replaced_pickle": _zip_with_pickle(saved({"state_dict": weights}), canary),
    }


def _torch_script() -> bytes:
    """A program archive as torch.jit writes it: constants, data and a folder `code`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/version", "3\n")
        archive.writestr("model/data.pkl", program(pickle.EMPTY_DICT))
        archive.writestr("model/constants.pkl", program(pickle.EMPTY_TUPLE))
        archive.writestr("model/code/__torch__.py", "class Model(Module):\n  def forward(self):\n    return 1\n")
    return stream.getvalue()


def _zip_with_pickle(good: bytes, canary: Path) -> bytes:
    """A sound archive whose data.pkl was replaced."""
    stream = io.BytesIO()
    evil = program(
        named("os", "system"),
        text(f"{sys.executable} -c \"open(r'{canary / 'pt_replaced_pickle'}', 'w')\""),
        pickle.TUPLE1,
        pickle.REDUCE,
    )
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(stream, "w") as target:
        for entry in source.infolist():
            data = evil if entry.filename.endswith("data.pkl") else source.read(entry)
            target.writestr(entry.filename, data)
    return stream.getvalue()


def main(folder: Path) -> None:
    from cloob_cli.convert import convert_checkpoint
    from cloob_cli.errors import CloobError

    for file in sorted(folder.iterdir()):
        for format in (None, "mljku", "crowsonkb", "rinna"):
            try:
                convert_checkpoint(file, format)
                outcome = "converted"
            except CloobError as error:
                outcome = type(error).__name__
            print(f"{file.stem} {format} {outcome}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
