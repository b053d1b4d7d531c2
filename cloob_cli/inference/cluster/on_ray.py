"""Ray Data runs the work: tasks that read parts, and actors with a model each that embed what these have read."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cloob_cli.errors import CloobError, MissingExtraError, UsageError
from cloob_cli.inference.cluster.embedder import ImageEmbedder, Settings, read_parts
from cloob_cli.inference.cluster.parts import Part
from cloob_cli.text_format import counted, first_line, os_reason

if TYPE_CHECKING:
    import pyarrow as pa

_ANSWER = 10.0  # seconds that a cluster has to answer
_DEATHS = 10  # of actors one after the other while they start, before the run is given up
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def check_ray() -> None:
    """Refuse to go on where Ray Data is not installed.

    Raises:
        MissingExtraError: that.
    """
    # It sends nothing to its makers, and says nothing of that, unless the user wants it to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise MissingExtraError.of("ray", "ray[data]") from None


@contextmanager
def cluster() -> Iterator[None]:
    """The cluster at RAY_ADDRESS, or one on this machine that lives as long as the body.

    Where this process is connected already, it stays so. What Ray prints, of workers that died, goes to stderr.

    Raises:
        CloobError: there is no cluster at that address.
    """
    import ray

    if ray.is_initialized():
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
    local: dict[str, Any] = {} if address else {"include_dashboard": False}
    with contextlib.redirect_stdout(sys.stderr), _own_signals():
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as problem:  # connection, version and timeout errors are of different classes
            raise CloobError(
                f"no Ray cluster: {first_line(problem)}", "without RAY_ADDRESS this machine alone does the work"
            ) from None
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Refuse an address HOST:PORT where nobody answers; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except OSError as problem:
        raise CloobError(f"no Ray cluster at {address}: {os_reason(problem)}", "RAY_ADDRESS names it") from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals: Ray sets one for SIGTERM that exits without a word."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Workforce:
    """Actors, and the processor cores and GPUs of each."""

    actors: int
    cores: int
    gpus: int
    machines: int

    def __str__(self) -> str:
        has = "a GPU" if self.gpus else "a processor core" if self.cores == 1 else f"{self.cores} processor cores"
        return f"{self.actors} x {has}, on {self.machines} machine{'s' if self.machines > 1 else ''}"


def workforce(actors: int | None, device: str | None) -> Workforce:
    """Divide the cluster: an actor for each GPU, or for each machine where there are none or `device` is a CPU.

    Args:
        actors: their number, where it is given.

    Raises:
        UsageError: the cluster has not so many cores or GPUs.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not machines:
        raise UsageError("the Ray cluster has no machine with a processor core to use")
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    wants_gpu = device is not None and device.startswith("cuda")
    if wants_gpu and not gpus:
        raise UsageError("the Ray cluster has no GPU", "leave --device out, or use cpu")
    cores = min(int(machine["CPU"]) for machine in machines)
    if gpus and (wants_gpu or device in (None, "auto")):
        if actors is not None and actors > gpus:
            raise UsageError(f"the Ray cluster has {gpus} GPUs, not {actors}", f"--actors {gpus}")
        most = max(int(machine.get("GPU", 0)) for machine in machines)
        return Workforce(actors or gpus, max(1, cores // most), 1, len(machines))
    count = actors or len(machines)
    if count > (total := sum(int(machine["CPU"]) for machine in machines)):
        raise UsageError(f"the Ray cluster has {counted(total, 'processor core')}, not {count}", f"--actors {total}")
    on_each = -(-count // len(machines))
    return Workforce(count, max(1, cores // on_each), 0, len(machines))


def embed_parts(
    parts: Sequence[Part], settings: Settings, force: Workforce, embedder: type[ImageEmbedder] = ImageEmbedder
) -> Generator[pa.Table]:
    """Tables of an `ImageEmbedder` for parts, in their order, whatever becomes of single workers.

    Ray Data starts an actor that died again, and repeats its batch; it gives up after half an hour without progress.

    Raises:
        CloobError: that of an embedder; or workers died again and again.
    """
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    try:
        yield from _dataset(parts, settings, force, embedder).iter_batches(batch_size=None, batch_format="pyarrow")
    except (RayError, ExecutionTimeoutError) as problem:
        raise _expected(problem) from None


def _dataset(parts: Sequence[Part], settings: Settings, force: Workforce, embedder: type[ImageEmbedder]) -> Any:
    import ray.data

    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else its class and hint are lost on the way
    context.max_consecutive_actor_init_deaths = _DEATHS
    on_each = -(-force.actors // force.machines)
    items = [{"part": part.to_json()} for part in parts]
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        # Tasks that read wait most of the time; a core that was theirs would be missing to the actors.
        dataset = dataset.map_batches(_read, batch_size=1, num_cpus=0, concurrency=2 * force.actors)
        return dataset.map_batches(
            embedder,
            fn_constructor_args=(dataclasses.replace(settings, embedders=on_each),),
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            concurrency=force.actors,
            num_cpus=force.cores,
            num_gpus=force.gpus,
        )


def _read(batch: dict[str, Any]) -> Iterator[pa.Table]:
    return read_parts(batch["part"].tolist())


def _expected(problem: BaseException) -> CloobError:
    """The error that a worker raised, out of those that Ray has put around it."""
    from ray.exceptions import RayError

    inner: BaseException | None = problem
    while inner is not None:
        if isinstance(inner, CloobError) and not isinstance(inner, RayError):  # Ray's own has both for its base
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return CloobError(
        f"the Ray cluster gave up: {first_line(problem)}",
        "its logs are in /tmp/ray/session_latest/logs on each machine",
    )
