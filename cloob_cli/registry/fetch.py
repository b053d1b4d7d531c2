"""Files from https addresses, one process at a time for each; the downloads resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloob_cli.errors import DownloadError
from cloob_cli.files import sha256_of
from cloob_cli.registry.connection import (
    RetryPolicy,
    answer_of,
    certificate_error,
    check_address,
    distrusted_certificate,
    http_client,
    shown_address,
)
from cloob_cli.registry.events import Notice, Report, unreported
from cloob_cli.registry.locks import lock
from cloob_cli.registry.storage import free_space
from cloob_cli.registry.transfer import Downloaded, Transfer, paths_of


@contextmanager
def downloading(
    url: str,
    *,
    sha256: str | None = None,
    report: Report = unreported,
    patience: RetryPolicy | None = None,
    room_factor: float = 1.0,
    free: Callable[[Path], int] = free_space,
    remedy: str = "pull again to fetch it anew",
) -> Iterator[Downloaded]:
    """Fetch `url` into the downloads folder, going on where an earlier try ended.

    Args:
        sha256: what the whole file must hash to; None accepts any.
        room_factor: how many times the file's size must be free (more than 1 where it is converted afterwards).
        free: tells the free bytes of a folder.
        remedy: what to do about a file with another hash, which stands for `{found}`.

    Yields:
        The complete file. It stays in the downloads folder until the caller moves or deletes it; no other process
        takes it up, or away, before the context ends.

    Raises:
        UsageError: not an https address.
        DownloadError: the server does not have it, or did not deliver after all tries; what came is kept.
        DiskSpaceError: it does not fit.
        ChecksumError: the file is another one; it is set aside.
    """
    check_address(url)
    with lock(url, lambda: report(Notice("another process is using the same download; waiting for it"))):
        yield Transfer(url, sha256, report, patience or RetryPolicy(), room_factor, free, remedy).run()


def download(url: str, **options: Any) -> Downloaded:
    """The same, for a caller who has no need of the file's lock: the complete file."""
    with downloading(url, **options) as got:
        return got


@contextmanager
def finished(url: str) -> Iterator[Downloaded | None]:
    """What an earlier call fetched whole and nobody took away, without asking anybody."""
    with lock(url):
        complete = paths_of(url)[2]
        yield Downloaded(complete, sha256_of(complete), 0) if complete.is_file() else None


def remote_size(url: str) -> int | None:
    """The size of a file in bytes, where the server says so.

    Raises:
        UsageError: not an https address.
        DownloadError: no answer, or no such file.
    """
    import httpx2

    check_address(url)
    try:
        with http_client(timeout=15) as client:
            response = client.head(url)
    except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
        if distrust := distrusted_certificate(problem):
            raise certificate_error(url, distrust) from None
        raise DownloadError(f"{shown_address(url)}: {problem}", "try again later") from None
    if response.is_error:
        raise DownloadError(f"{shown_address(url)}: {answer_of(response)}")
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None
