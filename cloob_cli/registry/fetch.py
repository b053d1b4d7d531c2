"""Downloads over HTTPS that resume: what has arrived is kept, and only what is missing is asked for again.

HTTP semantics: RFC 9110, sections 13.1.5 (If-Range), 14.2 (Range) and 15.3.7 (206 Partial Content).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from cloob_cli.errors import ChecksumError, DiskSpaceError, DownloadError, UsageError
from cloob_cli.files import replacing, sha256_of
from cloob_cli.registry.events import Notice, Received, Report, Started, unreported
from cloob_cli.registry.locks import lock, lock_name
from cloob_cli.registry.store import home

if TYPE_CHECKING:
    import httpx2

_CHUNK = 1 << 20
_TRANSIENT_STATUS = {408, 421, 425, 429, 500, 502, 503, 504}
_KEPT_FREE = 64 << 20  # bytes that a download leaves free for everybody else


@dataclass(frozen=True)
class Patience:
    """How long to go on. An attempt counts as failed where it brought less than `progress_bytes`."""

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 30.0
    connect_seconds: float = 15.0
    stall_seconds: float = 20.0
    progress_bytes: int = 1 << 16


@dataclass(frozen=True)
class Downloaded:
    """A complete file, its hash, and how much of it was fetched by this call."""

    path: Path
    sha256: str
    fetched_bytes: int


class _TryAgain(Exception):
    pass


class _StartOver(Exception):
    pass


def free_space(folder: Path) -> int:
    """Free bytes where `folder` is (or will be)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int, free: Callable[[Path], int] = free_space) -> None:
    """Raise DiskSpaceError where `needed` bytes do not fit."""
    available = free(folder)
    if needed + _KEPT_FREE > available:
        raise DiskSpaceError(
            f"not enough room in {folder}: {needed / 1e6:,.0f} MB needed, {available / 1e6:,.0f} MB free",
            "`cloob zoo prune` frees what is no longer needed; CLOOB_HOME puts models elsewhere",
        )


def check_address(url: str) -> None:
    """Raise UsageError unless `url` is https (plain http only to this machine)."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UsageError(f"{url!r} is not an address") from None
    if not parts.hostname or parts.scheme not in {"https", "http"}:
        raise UsageError(f"{url!r} is not an https address")
    if parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        raise UsageError(
            f"refusing plain http ({parts.hostname}): anybody on the way could change the file", "use https"
        )


def download(
    url: str,
    *,
    sha256: str | None = None,
    report: Report = unreported,
    patience: Patience | None = None,
    room_factor: float = 1.0,
    free: Callable[[Path], int] = free_space,
) -> Downloaded:
    """Fetch `url` into the downloads folder, going on where an earlier try ended.

    Args:
        sha256: what the whole file must hash to; None accepts any.
        room_factor: how many times the file's size must be free (more than 1 where it is converted afterwards).
        free: tells the free bytes of a folder.

    Returns:
        The complete file. It stays in the downloads folder until the caller moves or deletes it.

    Raises:
        UsageError: not an https address.
        DownloadError: the server does not have it, or did not deliver after all tries; what came is kept.
        DiskSpaceError: it does not fit.
        ChecksumError: the file is another one; it is set aside.
    """
    check_address(url)
    with lock(url, lambda: report(Notice("another process is downloading the same file; waiting for it"))):
        return _Transfer(url, sha256, report, patience or Patience(), room_factor, free).run()


def finished(url: str) -> Downloaded | None:
    """What an earlier call fetched whole and nobody took away, without asking anybody."""
    complete = _paths(url)[2]
    return Downloaded(complete, sha256_of(complete), 0) if complete.is_file() else None


def remote_size(url: str) -> int | None:
    """The size of a file in bytes, where the server says so.

    Raises:
        UsageError: not an https address.
        DownloadError: no answer, or no such file.
    """
    import httpx2

    check_address(url)
    try:
        response = httpx2.head(url, follow_redirects=True, headers={"Accept-Encoding": "identity"}, timeout=15)
    except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
        raise DownloadError(f"{_shown(url)}: {problem}", "try again later") from None
    if response.is_error:
        raise DownloadError(f"{_shown(url)}: the server answered {response.status_code} {response.reason_phrase}")
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def downloads_folder() -> Path:
    """Where unfinished downloads, and finished ones that are not installed yet, are kept."""
    return home() / "downloads"


def rejected_folder() -> Path:
    """Where files that proved to be others than expected are set aside."""
    return home() / "rejected"


def set_aside(path: Path, name: str) -> Path:
    """Move a bad file out of the way, for a person to look at."""
    folder = rejected_folder()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{sha256_of(path)[:8]}-{name}"
    os.replace(path, target)
    return target


class _Transfer:
    def __init__(
        self,
        url: str,
        sha256: str | None,
        report: Report,
        patience: Patience,
        room_factor: float,
        free: Callable[[Path], int],
    ) -> None:
        self.url, self.expected, self.report, self.patience = url, sha256, report, patience
        self.room_factor, self.free = room_factor, free
        self.name = Path(urlsplit(url).path).name or "download"
        self.partial, self.notes, self.complete = _paths(url)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.validator: str | None = None
        self.hash = hashlib.sha256()
        self.have = 0
        self.fetched = 0
        self.restarts = 0

    def run(self) -> Downloaded:
        if self.complete.is_file():
            found = sha256_of(self.complete)
            if self.expected in (None, found):
                return Downloaded(self.complete, found, 0)
            self.complete.unlink()
        self._take_up_what_is_here()
        self._until_complete()
        found = self.hash.hexdigest()
        if self.expected not in (None, found):
            self._reject(found)
        os.replace(self.partial, self.complete)
        self.notes.unlink(missing_ok=True)
        return Downloaded(self.complete, found, self.fetched)

    def _reject(self, found: str) -> NoReturn:
        aside = set_aside(self.partial, self.name)
        self.notes.unlink(missing_ok=True)
        raise ChecksumError(
            f"{_shown(self.url)} is not the file that was expected: sha256 {found}, expected {self.expected}",
            f"it was set aside as {aside}; pull again to fetch it anew",
        )

    def _take_up_what_is_here(self) -> None:
        try:
            self.validator = json.loads(self.notes.read_text(encoding="utf-8"))["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            self.validator = None
        # Without a validator only a known hash can tell whether the rest belongs to the part that is here.
        if self.partial.is_file() and (self.validator or self.expected):
            with self.partial.open("rb") as stream:
                while block := stream.read(_CHUNK):
                    self.hash.update(block)
                    self.have += len(block)

    def _until_complete(self) -> None:
        import httpx2
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

        limits = httpx2.Timeout(self.patience.stall_seconds, connect=self.patience.connect_seconds)
        first, longest = self.patience.first_wait, self.patience.longest_wait
        wait = wait_exponential(multiplier=first, max=longest) + wait_random(0, first)
        with httpx2.Client(follow_redirects=True, timeout=limits, headers={"Accept-Encoding": "identity"}) as client:
            complete = False
            while not complete:  # every round brings bytes or ends in an error
                retrying = Retrying(
                    retry=retry_if_exception_type(_TryAgain),
                    stop=stop_after_attempt(self.patience.attempts),
                    wait=wait,
                    before_sleep=lambda state: self._say_again(state.outcome.exception() if state.outcome else None),
                    reraise=True,
                )
                try:
                    complete = retrying(self._advance, client)
                except _TryAgain as problem:
                    kept = f"; the {self.have:,} bytes that came are kept for the next try" if self.have else ""
                    raise DownloadError(f"{_shown(self.url)}: {problem}{kept}", "try again later") from None

    def _say_again(self, problem: BaseException | None) -> None:
        self.report(Notice(f"{problem}; trying again"))

    def _advance(self, client: httpx2.Client) -> bool:
        """One request. True: the file is complete; False: some of it came; _TryAgain: next to nothing came."""
        import httpx2

        before = self.have
        try:
            return self._request(client)
        except _StartOver as problem:
            self._start_over(str(problem))
            return False
        except httpx2.TimeoutException:
            reason = f"no data for {self.patience.stall_seconds:g} seconds"
        except httpx2.TransportError as problem:
            reason = f"the connection broke ({problem or type(problem).__name__})"
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            raise DownloadError(f"{_shown(self.url)}: {problem}") from None
        except OSError as problem:
            self._give_up_on(problem)
        if self.have - before < self.patience.progress_bytes:
            raise _TryAgain(reason)
        self.report(Notice(f"{reason} after {self.have:,} bytes; going on from there"))
        return False

    def _request(self, client: httpx2.Client) -> bool:
        headers = {"Range": f"bytes={self.have}-"} if self.have else {}
        if self.have and self.validator:
            headers["If-Range"] = self.validator
        with client.stream("GET", self.url, headers=headers) as response:
            if self.url.startswith("https:") and any(r.url.scheme != "https" for r in (*response.history, response)):
                raise DownloadError(f"{_shown(self.url)} redirects to plain http: refused")
            total = self._accept(response)
            if self.have and self.have == total:
                return True
            if total is not None:
                check_space(self.partial.parent, int(total * self.room_factor) - self.have, self.free)
            self.report(Started(self.name, self.have, total))
            self._receive(response)
        if total is not None and self.have != total:
            raise _StartOver(f"{self.have:,} bytes came instead of {total:,}")
        return True

    def _accept(self, response: httpx2.Response) -> int | None:
        """Make sense of the answer: returns the size of the whole file, if known, ready to receive from `have`."""
        status = response.status_code
        if status in _TRANSIENT_STATUS:
            raise _TryAgain(f"the server answered {status} {response.reason_phrase}")
        if status == 416:  # nothing beyond what is here: complete, or another file
            if self.have and response.headers.get("Content-Range") == f"bytes */{self.have}":
                return self.have
            raise _StartOver("the server has fewer bytes than were here")
        if status not in (200, 206):
            hint = (
                "the file may have moved; see the model's homepage in `cloob zoo show`"
                if status in (404, 410)
                else None
            )
            raise DownloadError(f"{_shown(self.url)}: the server answered {status} {response.reason_phrase}", hint)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{_shown(self.url)}: the server sent a re-encoded file")
        validator = _validator(response)
        if status == 206:
            return self._accept_rest(response, validator)
        if self.have:
            reason = "the file changed" if validator != self.validator else "the server cannot resume"
            self._start_over(reason)
        self.partial.unlink(missing_ok=True)  # before the note: old bytes must never stand beside a new validator
        self.validator = validator
        with replacing(self.notes) as temporary:
            temporary.write_text(json.dumps({"url": _shown(self.url), "validator": validator}), encoding="utf-8")
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None

    def _accept_rest(self, response: httpx2.Response, validator: str | None) -> int | None:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit != "bytes" or not self.have or span.partition("-")[0] != str(self.have):
            raise _StartOver("the server sent another part than was asked for")
        if self.validator and validator and validator != self.validator:
            raise _StartOver("the file changed")
        return int(total) if total.isdigit() else None

    def _receive(self, response: httpx2.Response) -> None:
        with self.partial.open("r+b" if self.have else "wb") as stream:
            stream.seek(self.have)
            stream.truncate()
            for block in response.iter_raw():  # as it comes: nothing is lost in a buffer when the line breaks
                stream.write(block)
                self.hash.update(block)
                self.have += len(block)
                self.fetched += len(block)
                self.report(Received(len(block)))

    def _start_over(self, reason: str) -> None:
        self.restarts += 1
        if self.restarts >= self.patience.attempts:
            raise DownloadError(f"{_shown(self.url)}: {reason}, {self.restarts} times", "try again later")
        self.report(Notice(f"{reason}; starting over"))
        self.have, self.validator, self.hash = 0, None, hashlib.sha256()
        self.partial.unlink(missing_ok=True)

    def _give_up_on(self, problem: OSError) -> NoReturn:
        if problem.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise DiskSpaceError(
                f"the disk is full: {self.partial.parent}", "what came is kept; free some room and pull again"
            ) from None
        raise problem


def _validator(response: httpx2.Response) -> str | None:
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):  # a weak one does not promise equal bytes
        return str(etag)
    modified = response.headers.get("Last-Modified")
    return str(modified) if modified else None


def _paths(url: str) -> tuple[Path, Path, Path]:
    """Where the unfinished file, the note beside it and the finished file of an address are."""
    key = lock_name(url)
    return tuple(downloads_folder() / f"{key}.{end}" for end in ("partial", "json", "complete"))  # type: ignore[return-value]


def _shown(url: str) -> str:
    """An address without the credentials that it may hold."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
