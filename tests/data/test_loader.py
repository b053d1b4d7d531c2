"""Batches: a pure function of (seed, epoch), whatever reads them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import torch
from pair_files import FatalSource, captions_of, image, write_folder, write_parquet, write_tar
from torch.utils.data import dataloader as torch_loader

from cloob_cli.data import loader as loader_module
from cloob_cli.data.batch import PairBatch
from cloob_cli.data.loader import PairLoader
from cloob_cli.data.pairs import PairSource, open_pairs
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.data.sample_order import epoch_order
from cloob_cli.data.sources.parquet import ParquetSource
from cloob_cli.data.streaming import PairStream
from cloob_cli.data.tokenizer import Tokenizer, train_bpe
from cloob_cli.errors import DataError
from cloob_cli.recipe import AugmentSection, DataSection

COUNT = 47
PLAIN = AugmentSection()
MUCH = AugmentSection(
    crop_scale=(0.6, 1.0), shift=2, flip=True, color_jitter=0.3, grayscale=0.2, invert=0.2, crop_ratio=(0.8, 1.2)
)
FIELDS = ("pixels", "tokens", "indices", "caption_ids")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([text for number in range(COUNT) for text in captions_of(number)], 560, context_length=12)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PairSource:
    path = write_parquet(tmp_path_factory.mktemp("pairs") / "t.parquet", range(COUNT), pair13=b"no image")
    return open_pairs(DataSection(train=str(path)))


def loader(source: PairSource, tokenizer: Tokenizer, augment: AugmentSection = PLAIN, **options: object) -> PairLoader:
    settings: dict = {"batch_size": 10, "seed": 5, "workers": 0, "in_memory": True} | options
    indices = settings.pop("indices", None)
    return PairLoader(source, indices, tokenizer, Preprocess(16), augment, **settings)


def assert_equal(one: PairBatch, other: PairBatch) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.skipped == other.skipped


def test_a_batch(source: PairSource, tokenizer: Tokenizer) -> None:
    made = loader(source, tokenizer)
    assert made.batches_per_epoch == 4
    batches = list(made.batches(0))
    assert len(batches) == 4
    order = epoch_order(COUNT, 5, 0)
    preprocess = Preprocess(16)
    for number, batch in enumerate(batches):
        wanted = [index for index in order[10 * number : 10 * number + 10].tolist() if index != 13]
        assert batch.indices.tolist() == wanted
        assert batch.pixels.shape == (len(wanted), 3, 16, 16)
        assert batch.pixels.dtype == torch.uint8
        for row, index in enumerate(wanted):
            crop = torch.from_numpy(preprocess.crop(image(index))).permute(2, 0, 1)
            assert torch.equal(batch.pixels[row], crop)
            assert batch.tokens[row, 0].tolist() in tokenizer(captions_of(index)).tolist()


def test_the_unreadable_pair_is_left_out_and_named(source: PairSource, tokenizer: Tokenizer) -> None:
    for in_memory in (True, False):
        skipped = [
            entry for batch in loader(source, tokenizer, in_memory=in_memory).batches(1) for entry in batch.skipped
        ]
        assert skipped == [(source.name(13), "not an image in a known format")]


def test_equal_captions_have_equal_ids(source: PairSource, tokenizer: Tokenizer) -> None:
    batches = list(loader(source, tokenizer).batches(0))
    ids = {int(i): int(c) for batch in batches for i, c in zip(batch.indices, batch.caption_ids, strict=True)}
    same = {ids[index] for index in ids if index % 5 == 4}
    others = [ids[index] for index in ids if index % 5 != 4]
    assert len(same) == 1
    assert len(set(others)) == len(others)
    assert not same & set(others)


@pytest.mark.parametrize("augment", [PLAIN, MUCH], ids=["plain", "augmented"])
@pytest.mark.parametrize(
    "options",
    [{"in_memory": False}, {"in_memory": True, "workers": 3}, {"in_memory": "auto"}],
    ids=["read anew", "in memory by threads", "auto"],
)
def test_contents_do_not_depend_on_how_they_are_read(
    source: PairSource, tokenizer: Tokenizer, augment: AugmentSection, options: dict
) -> None:
    expected, other = loader(source, tokenizer, augment), loader(source, tokenizer, augment, **options)
    for epoch in (0, 3):
        for one, two in zip(expected.batches(epoch), other.batches(epoch), strict=True):
            assert_equal(one, two)


def test_worker_processes_change_nothing(source: PairSource, tokenizer: Tokenizer) -> None:
    """Also when an epoch is left in the middle, and the next one asked of the same workers."""
    expected = loader(source, tokenizer, MUCH)
    other = loader(source, tokenizer, MUCH, in_memory=False, workers=2)
    begun = other.batches(0)
    assert_equal(next(begun), next(expected.batches(0)))
    begun.close()
    for one, two in zip(expected.batches(1), other.batches(1), strict=True):
        assert_equal(one, two)


def test_workers_end_by_themselves_with_their_loader(
    source: PairSource, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to wait for them in vain and then end them with a signal."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 60)  # how long torch waits for each
    others = set(multiprocessing.active_children())
    made = loader(source, tokenizer, in_memory=False, workers=2)
    list(made.batches(0))
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    del made
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("in_memory", [True, False])
def test_processes_share_a_batch(source: PairSource, tokenizer: Tokenizer, processes: int, in_memory: bool) -> None:
    whole = list(loader(source, tokenizer, MUCH).batches(2))
    by_rank = [
        list(loader(source, tokenizer, MUCH, in_memory=in_memory, rank=rank, processes=processes).batches(2))
        for rank in range(processes)
    ]
    for number, batch in enumerate(whole):
        parts = [batches[number] for batches in by_rank]
        for name in FIELDS:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


@pytest.mark.parametrize("in_memory", [True, False])
def test_resume_reads_only_what_comes_after(tokenizer: Tokenizer, tmp_path: Path, in_memory: bool) -> None:
    source = open_pairs(DataSection(train=str(write_folder(tmp_path, range(COUNT)))))
    whole = list(loader(source, tokenizer).batches(4))
    resumed = loader(source, tokenizer, in_memory=in_memory)
    read: list[int] = []
    image = source.image
    source.image = lambda index, size_hint=None: read.append(index) or image(index, size_hint)  # type: ignore
    rest = list(resumed.batches(4, first_batch=2))
    for one, two in zip(whole[2:], rest, strict=True):
        assert_equal(one, two)
    assert sorted(set(read)) == sorted(torch.cat([batch.indices for batch in rest]).tolist())
    read.clear()
    again = list(resumed.batches(4, first_batch=3))
    assert_equal(again[0], rest[1])
    assert len(read) == (0 if in_memory else 10)  # what is in memory is not read twice


def test_epochs_differ_in_order_captions_and_augmentation(source: PairSource, tokenizer: Tokenizer) -> None:
    made = loader(source, tokenizer, MUCH)
    epochs = [{int(i): (p, t) for b in made.batches(e) for i, p, t in zip(b.indices, b.pixels, b.tokens, strict=True)}
              for e in range(2)]  # fmt: skip
    assert list(epochs[0]) != list(epochs[1])
    both = [index for index in epochs[0] if index in epochs[1]]
    assert not any(torch.equal(epochs[0][index][0], epochs[1][index][0]) for index in both)
    several = [index for index in both if len(captions_of(index)) == 3]
    assert 0 < sum(torch.equal(epochs[0][index][1], epochs[1][index][1]) for index in several) < len(several)


def test_every_caption_is_used(source: PairSource, tokenizer: Tokenizer) -> None:
    made = loader(source, tokenizer)
    seen = {tuple(row) for epoch in range(40) for batch in made.batches(epoch) for row in batch.tokens[:, 0].tolist()}
    every = {
        tuple(tokenizer(text)[0].tolist()) for number in range(COUNT) if number != 13 for text in captions_of(number)
    }
    assert seen == every


def test_only_the_given_pairs(source: PairSource, tokenizer: Tokenizer) -> None:
    wanted = np.array([3, 8, 1, 40, 22, 30])
    for in_memory in (True, False):
        made = loader(source, tokenizer, indices=wanted, batch_size=3, in_memory=in_memory)
        assert sorted(torch.cat([batch.indices for batch in made.batches(0)]).tolist()) == sorted(wanted)


def test_images_of_different_sizes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, range(12))
    image(3, (90, 30)).save(folder / "003.png")
    image(0, (16, 50)).save(folder / "000.png")
    source = open_pairs(DataSection(train=str(folder)))
    for augment in (PLAIN, MUCH):
        kept, anew = (loader(source, tokenizer, augment, batch_size=12, in_memory=m) for m in (True, False))
        assert_equal(next(kept.batches(0)), next(anew.batches(0)))


def test_a_set_larger_than_its_cache_is_mixed_in_windows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", range(40), row_group=4)
    source = ParquetSource([path], None, None, cache_bytes=5000)
    assert source.blocks is not None
    in_window = source.blocks[1]
    assert in_window < 5
    indices = torch.cat([b.indices for b in loader(source, tokenizer, batch_size=4, in_memory=False).batches(0)])
    assert sorted(indices.tolist()) == list(range(40))
    windows = indices.view(-1, 4 * in_window) if 40 % (4 * in_window) == 0 else indices[: 4 * in_window][None]
    for window in windows:
        assert len({index // 4 for index in window.tolist()}) == in_window
    assert indices[: 4 * in_window].tolist() != sorted(indices[: 4 * in_window].tolist())


def test_webdataset_batches(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", range(12))
    source = open_pairs(DataSection(train=str(tmp_path)))
    batch = next(loader(source, tokenizer, batch_size=12, in_memory=False).batches(0))
    expected = torch.cat([tokenizer(captions_of(index)[0]) for index in batch.indices.tolist()])
    assert torch.equal(batch.tokens[:, 0], expected)


def test_fewer_pairs_than_a_batch(source: PairSource, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="47 training pairs are fewer than one batch of 48"):
        loader(source, tokenizer, batch_size=48)


@pytest.mark.parametrize("in_memory", [True, False])
def test_nothing_readable_is_an_error(tokenizer: Tokenizer, tmp_path: Path, in_memory: bool) -> None:
    folder = write_folder(tmp_path, range(12))
    source = open_pairs(DataSection(train=str(folder)))
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        list(loader(source, tokenizer, in_memory=in_memory).batches(0))


@pytest.mark.slow  # a fresh interpreter imports torch
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_worker_is_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="want of memory"):
        next(loader(FatalSource(), tokenizer, in_memory=False, workers=1).batches(0))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_worker_that_is_killed_between_two_epochs_is_one_line(
    source: PairSource, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch looks after its workers every five seconds.
    monkeypatch.setattr(torch_loader._MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    streaming = loader(source, tokenizer, in_memory=False, workers=2)
    before = set(multiprocessing.active_children())
    list(streaming.batches(0))
    lost = min(set(multiprocessing.active_children()) - before, key=lambda child: child.name)
    lost.kill()
    lost.join()
    with pytest.raises(DataError, match="want of memory"):
        list(streaming.batches(1))


def start_streaming(folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A process, its own group, that streams with two workers until Ctrl-C; the workers' numbers."""
    write_folder(folder / "pairs", range(COUNT))
    script = folder / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, signal
            from cloob_cli.data.preprocess import Preprocess
            from cloob_cli.data.loader import PairLoader
            from cloob_cli.data.pairs import open_pairs
            from cloob_cli.data.tokenizer import clip_tokenizer
            from cloob_cli.recipe import AugmentSection, DataSection

            def main():
                source = open_pairs(DataSection(train={str(folder / "pairs")!r}))
                loader = PairLoader(source, None, clip_tokenizer(), Preprocess(16), AugmentSection(), batch_size=4,
                                    seed=0, workers=2, in_memory=False)
                stop = []
                signal.signal(signal.SIGINT, lambda *_: stop.append(True))
                for epoch in range(10**6):
                    for batch in loader.batches(epoch):
                        if epoch == 0:
                            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                        if stop:
                            raise SystemExit(130)

            if __name__ == "__main__":
                main()
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    workers = [int(number) for number in process.stdout.readline().split()]
    assert len(workers) == 2
    return process, workers


@pytest.mark.slow  # two fresh interpreters import torch
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_no_worker_behind(tmp_path: Path) -> None:
    """The terminal sends Ctrl-C to the whole group; the main process decides, workers stay quiet and end with it."""
    process, workers = start_streaming(tmp_path)
    with process:
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    """Also the server that forked them, and whatever else the process had started."""
    process, workers = start_streaming(tmp_path)
    with process:
        started = psutil.Process(process.pid).children(recursive=True)
        assert {child.pid for child in started} > set(workers)
        process.kill()
        deadline = time.monotonic() + 60  # it takes a moment
        while alive := [child for child in started if is_alive(child)]:
            if time.monotonic() > deadline:
                for child in alive:
                    child.kill()
                pytest.fail(f"still running: {alive}")
            time.sleep(0.05)
        assert process.stderr is not None
        assert "leaked" not in process.stderr.read()


def is_alive(process: psutil.Process) -> bool:
    """True where a process still runs; one that has ended and that nobody has asked about since does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_automatic_workers_share_the_cores_of_their_own_machine(
    source: PairSource, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr(loader_module, "PairStream", lambda reader, workers: asked.append(workers) or mock.Mock())
    for local in (8, None):
        loader(source, tokenizer, in_memory=False, workers="auto", processes=16, local_processes=local)
    assert asked == [3, 1]


@pytest.mark.parametrize(("local", "fits"), [(1, True), (2, True), (3, False)])
def test_images_stay_in_memory_where_those_of_all_processes_fit(
    source: PairSource, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, local: int, fits: bool
) -> None:
    """0.4 of six times what one process keeps is room for two of them, not for three."""
    memory = mock.Mock(available=6 * COUNT * 16 * 16 * 3)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    made = loader(source, tokenizer, in_memory="auto", processes=4, local_processes=local)
    assert made.in_memory == fits


@pytest.mark.parametrize(
    ("problem", "lost"),
    [
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (FileNotFoundError(2, "No such file or directory"), True),  # the socket through which a batch is fetched
        (EOFError(), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"), False),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback"), False),
        (RuntimeError("something else"), False),
    ],
)
def test_however_a_lost_worker_shows_it_is_one_message(
    monkeypatch: pytest.MonkeyPatch, problem: Exception, lost: bool
) -> None:
    """An error of a living worker is not taken for a lost one."""

    def parts() -> Iterator[PairBatch]:
        raise problem
        yield

    streamed = PairStream(mock.Mock(), 0)
    monkeypatch.setattr(streamed, "_loader", parts())
    with pytest.raises(DataError if lost else type(problem)) as caught:
        list(streamed.batches(0, [(np.arange(4), 16)]))
    assert ("ended from outside" in str(caught.value)) == lost
