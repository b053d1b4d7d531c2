"""Batches that are copied to a GPU ahead of their computation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from margins import close
from tiny_model import RESNET, save_images, save_tiny_model

from cloob_cli.checkpoint.folder import open_model
from cloob_cli.inference.embed import embed_images
from cloob_cli.inference.encoding import prepare_for_inference
from cloob_cli.inference.image_batches import ImageBatch
from cloob_cli.inference.prefetch import prefetched


def test_on_a_cpu_batches_pass_through_one_by_one() -> None:
    batches = [ImageBatch([str(number)], torch.empty(1)) for number in range(3)]
    source = iter(batches)
    passed = prefetched(source, torch.device("cpu"))
    assert next(passed) is batches[0]
    assert next(source) is batches[1]  # nothing was read ahead
    assert list(passed) == [batches[2]]


def test_a_copy_begins_before_the_batch_ahead_of_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the streams and the pixels: the order of what is asked of the GPU."""
    done: list[str] = []

    class Pixels:
        def __init__(self, name: str) -> None:
            self.name = name

        def pin_memory(self) -> Pixels:
            return self

        def to(self, device: torch.device, non_blocking: bool) -> Pixels:
            assert (device.type, non_blocking) == ("cuda", True)
            done.append(f"copy {self.name}")
            stream.record_event = lambda: f"copied {self.name}"
            return self

        def record_stream(self, stream: object) -> None:
            done.append(f"keep {self.name}")

    current, stream = mock.Mock(), mock.Mock()
    current.wait_event = lambda event: done.append(f"wait: {event}")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", mock.MagicMock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)

    def batches() -> Iterator[ImageBatch]:
        for name in "abc":
            yield ImageBatch([name], Pixels(name))

    for batch in prefetched(batches(), torch.device("cuda")):
        done.append(f"compute {batch.paths[0]}")
    ready = ["wait: copied {0}", "keep {0}", "compute {0}"]
    steps = ["copy a", "copy b", *ready, "copy c", *ready, *ready]
    names = iter("aaabbbccc")
    assert done == [step.format(next(names)) if step in ready else step for step in steps]
    assert list(prefetched([], torch.device("cuda"))) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.numeric
def test_a_gpu_gives_the_embeddings_of_the_cpu(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", RESNET)
    paths = save_images(tmp_path / "images", 21)
    rows = []
    for device in ("cpu", "cuda"):
        model = prepare_for_inference(open_model(folder, device, "fp32"))
        batches = list(embed_images(model, paths, batch_size=4))
        assert [name for batch in batches for name in batch.names] == [str(path) for path in paths]
        rows.append(torch.cat([batch.embeddings for batch in batches if batch.embeddings is not None]))
    close(
        rows[1],
        rows[0],
        "cuDNN may round the factors of convolutions to the 11 bits of TF32, a dozen times",
        atol=12 * 2**-11,
    )
