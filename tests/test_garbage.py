"""The garbage collector keeps away from imported modules, and from the end of the process."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from importlib import util
from pathlib import Path
from unittest import mock

import pytest

from cloob_cli import __main__, garbage, main, signals


class Ring:
    """Garbage that only the collector finds: it holds itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that was never imported, and of a thousand objects."""
    (tmp_path / "never_imported_before.py").write_text("objects = [[number] for number in range(1000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "never_imported_before", raising=False)
    return "never_imported_before"


def test_no_garbage_is_collected_while_commands_import() -> None:
    with signals.leaving_at_once():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_was_imported_is_left_out_of_later_collections(module: str) -> None:
    with mock.patch("gc.freeze", wraps=gc.freeze) as freeze, garbage.paused_for_imports():
        imported = __import__(module)
    assert freeze.call_count == 1
    assert not any(one is imported.objects for one in gc.get_objects())  # which knows of no frozen ones


def test_garbage_is_still_found_where_nothing_was_imported() -> None:
    with garbage.paused_for_imports():
        ring = Ring()
        found = weakref.ref(ring)
        del ring
    gc.collect()
    assert found() is None


def test_collection_goes_on_after_an_import_that_failed() -> None:
    with pytest.raises(ModuleNotFoundError), garbage.paused_for_imports():
        __import__("no_such_module")
    assert gc.isenabled()


def test_a_collector_that_is_switched_off_stays_so() -> None:
    gc.disable()
    try:
        with garbage.paused_for_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_no_garbage_is_collected_when_the_process_ends() -> None:
    calls = mock.Mock()
    with (
        mock.patch.object(main, "run", calls.work),
        mock.patch("cloob_cli.signals.leave_at_once"),
        mock.patch("cloob_cli.__main__.let_waiting_threads_sleep"),
        mock.patch("gc.freeze", calls.freeze),
        mock.patch.object(garbage, "_COUNTING", ()),
    ):
        __main__.run()
    assert calls.mock_calls == [mock.call.work(), mock.call.freeze()]


@pytest.mark.skipif(not util.find_spec("triton"), reason="triton is not installed")
def test_a_library_that_counts_its_objects_finds_none_left() -> None:
    """It tells on stderr of every one that no collection has found."""
    program = """
import sys
from cloob_cli import __main__, signals
with signals.leaving_at_once():
    import triton
sys.argv = ["cloob", "--version"]
__main__.run()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("cloob ")
    assert done.stderr == ""
