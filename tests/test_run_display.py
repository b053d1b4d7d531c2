"""The display of a training run: two lines with a bar, the total and the time, whatever the terminal's width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cloob_cli.commands.train import _scores
from cloob_cli.console import run_display

VALUES = "loss 3.2134  rate 1.00e-03  1,812 images/s  waiting for data 3%  12.3 GiB"


def lines(width: int, title: str = "cc3m-rn50") -> list[str]:
    now = [100.0]
    shown = run_display._LiveStatus(title, clock=lambda: now[0])
    now[0] += 723
    shown.update(1200, 20_000, 3731.0, VALUES)
    now[0] += 1
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, legacy_windows=False).print(shown.drawn(width))
    return stream.getvalue().splitlines()


def test_the_display_holds_a_bar_the_total_and_the_times():
    first, second = lines(120)
    assert first.startswith("cc3m-rn50 ")
    assert "━" in first
    assert "1,200/20,000  12:04 elapsed, 1:02:10 left" in first
    assert second.rstrip() == VALUES


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("title", ["tiny", "a-model-with-quite-a-long-name-for-a-narrow-terminal"])
def test_neither_line_is_wrapped_nor_wider_than_a_usual_terminal(width, title):
    shown = lines(width, title)
    assert len(shown) == 2
    assert max(len(line.rstrip()) for line in shown) <= min(width - 1, 78)


def test_off_a_terminal_a_line_says_the_same(capsys):
    now = [0.0]
    shown = run_display._LineStatus("tiny", 10.0, clock=lambda: now[0])
    for step in range(1, 5):
        now[0] += 6
        shown.update(step, 20, 60.0, VALUES)
    told = capsys.readouterr().err.splitlines()
    assert told == [f"tiny: step {n} of 20, 0:{6 * n:02} elapsed, 1:00 left: {VALUES}" for n in (1, 3)]


def test_a_validation_is_one_line():
    metrics = {f"retrieval/{way}/recall_{k}": 0.1234 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    metrics |= {"covariance_rank/image": 412.0, "covariance_rank/text": 390.0}
    metrics |= {f"zero_shot/{name}/top{k}": 0.4321 for name in ("flags", "emoji") for k in (1, 5)}
    shown = _scores(metrics | {"zero_shot/mean/top1": 0.4321})
    assert shown == "recall@1 0.123 image to text, 0.123 text to image; zero-shot top-1 0.432 over 2 sets"
    assert _scores({"zero_shot/flags/top1": 0.5, "zero_shot/mean/top1": 0.5}) == "zero-shot top-1 0.500 (flags)"
