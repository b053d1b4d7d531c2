"""Parts of the console that need no process of their own."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from cloob_cli import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    now = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(sys.modules["cloob_cli.console.progress"], "time", SimpleNamespace(monotonic=lambda: now.time))
    return now


def test_off_a_terminal_progress_is_a_line_every_30_seconds(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.track("classify", 1000, "images") as bar:
        for second in range(100):
            clock.time = 1000.0 + second
            bar.advance(5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "classify: 155 of 1,000 images, 5.17 a second, 2:44 left",
        "classify: 305 of 1,000 images, 5.08 a second, 2:17 left",
        "classify: 455 of 1,000 images, 5.06 a second, 1:48 left",
    ]


def test_what_comes_before_the_first_input_shows_too(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.track("downloading", unit="B") as bar:
        bar.restart(100e6, 400e6)
        clock.time += 40
        bar.note("weights: 1 of 2")
        bar.advance(200e6)
        clock.time += 31
        bar.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "downloading: 100.0 MB of 400.0 MB, 0 bytes/s, weights: 1 of 2",
        "downloading: 300.0 MB of 400.0 MB, 2.8 MB/s, 0:35 left, weights: 1 of 2",
    ]


def test_quiet_shows_no_progress(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    try:
        with console.track("classify", 10, "images") as bar:
            clock.time += 100
            bar.advance()
    finally:
        console.configure()
    assert capsys.readouterr().err == ""
