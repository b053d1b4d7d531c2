"""Downloads from https addresses that go on where they stopped, one process at a time for each.

HTTP semantics: RFC 9110, sections 10.2.3 (Retry-After), 13.1.5 (If-Range), 14.2 (Range), 15.3.7 (206 Partial Content).
huggingface_hub's `http_get` resumes too, but asks without If-Range (a file that changed in between is mixed with the
old one), follows redirects to plain http, and knows no bound for a file of unknown size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from cloob_cli.atomic_files import replacing, sha256_of
from cloob_cli.errors import ChecksumError, DiskSpaceError, DownloadError, UnreachableError
from cloob_cli.registry.events import Notice, Received, Report, Started, unreported
from cloob_cli.registry.http import (
    NO_NETWORK,
    TRY_AGAIN,
    RetryPolicy,
    answer_of,
    certificate_error,
    check_address,
    distrusted_certificate,
    http_client,
    plain,
    retry_after,
    shown_address,
    unreachable,
    validator_of,
)
from cloob_cli.registry.locks import lock, lock_name
from cloob_cli.registry.paths import downloads_folder
from cloob_cli.registry.storage import FULL_DISK, check_space, free_space, quarantine
from cloob_cli.text_format import counted

if TYPE_CHECKING:
    import httpx2
    from tenacity import RetryCallState

_CHUNK = 1 << 20
_LOOK_AT_THE_DISK = 8 << 20  # bytes that may come between two looks
_TRANSIENT_STATUS = {408, 421, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Downloaded:
    """A complete file, its hash, and how much of it was fetched by this call."""

    path: Path
    sha256: str
    fetched_bytes: int


@contextmanager
def downloading(
    url: str,
    *,
    sha256: str | None = None,
    report: Report = unreported,
    retry_policy: RetryPolicy | None = None,
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
        UnreachableError: of these, no try connected to the server.
        DiskSpaceError: it does not fit.
        ChecksumError: the file is another one; it is quarantined.
    """
    check_address(url)
    with lock(url, lambda: report(Notice("another process is using the same download; waiting for it"))):
        yield Transfer(url, sha256, report, retry_policy or RetryPolicy(), room_factor, free, remedy).run()


@contextmanager
def finished(url: str) -> Iterator[Downloaded | None]:
    """Yield the complete file of an earlier call that nobody took away yet, or None, without using the network."""
    with lock(url):
        complete = paths_of(url)[2]
        yield Downloaded(complete, sha256_of(complete), 0) if complete.is_file() else None


class _TryAgain(Exception):
    """Nothing came; `after`: the seconds that the server wants to be left alone."""

    def __init__(self, reason: str, after: float = 0.0, hint: str = TRY_AGAIN) -> None:
        super().__init__(reason)
        self.hint = hint
        self.after = after


class _StartOver(Exception):
    pass


class Transfer:
    """The state of one download, from what is here already to the complete file."""

    def __init__(
        self,
        url: str,
        sha256: str | None,
        report: Report,
        retry_policy: RetryPolicy,
        room_factor: float,
        free: Callable[[Path], int],
        remedy: str,
    ) -> None:
        self.url, self.expected, self.report, self.retry_policy = url, sha256, report, retry_policy
        self.room_factor, self.free, self.remedy = room_factor, free, remedy
        self.name = Path(urlsplit(url).path).name or "download"
        self.partial, self.notes, self.complete = paths_of(url)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        self.validator: str | None = None
        self.hash = hashlib.sha256()
        self.have = 0
        self.total: int | None = None
        self.fetched = 0
        self.restarts = 0
        self.connected = False

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
            self._quarantine(found)
        os.replace(self.partial, self.complete)
        self.notes.unlink(missing_ok=True)
        return Downloaded(self.complete, found, self.fetched)

    def _quarantine(self, found: str) -> NoReturn:
        kept = quarantine(self.partial, self.name)
        self.notes.unlink(missing_ok=True)
        raise ChecksumError(
            f"{shown_address(self.url)} is not the file that was expected: sha256 {found}, expected {self.expected}",
            f"it is quarantined as {kept}; {self.remedy.replace('{found}', found)}",
        )

    def _take_up_what_is_here(self) -> None:
        try:
            noted = json.loads(self.notes.read_text(encoding="utf-8"))["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            noted = None
        self.validator = noted if isinstance(noted, str) else None
        # Without a validator only a known hash can tell whether the rest belongs to the part that is here.
        if self.partial.is_file() and (self.validator or self.expected):
            with self.partial.open("rb") as stream:
                while block := stream.read(_CHUNK):
                    self.hash.update(block)
                    self.have += len(block)

    def _until_complete(self) -> None:
        import httpx2
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

        def wait(state: RetryCallState) -> float:
            problem = state.outcome.exception() if state.outcome else None
            return max(own_wait(state), problem.after if isinstance(problem, _TryAgain) else 0.0)

        limits = httpx2.Timeout(self.retry_policy.stall_seconds, connect=self.retry_policy.connect_seconds)
        first, longest = self.retry_policy.first_wait, self.retry_policy.longest_wait
        own_wait = wait_exponential(multiplier=first, max=longest) + wait_random(0, first)
        with http_client(timeout=limits) as client:
            complete = False
            while not complete:  # every round brings bytes or ends in an error
                retrying = Retrying(
                    retry=retry_if_exception_type(_TryAgain),
                    stop=stop_after_attempt(self.retry_policy.attempts),
                    wait=wait,
                    sleep=self.retry_policy.sleep,
                    before_sleep=self._say_again,
                    reraise=True,
                )
                try:
                    complete = retrying(self._advance, client)
                except _TryAgain as problem:
                    kept = f"; the {self.have:,} bytes that came are kept for the next try" if self.have else ""
                    error = DownloadError if self.connected else UnreachableError
                    raise error(f"{shown_address(self.url)}: {problem}{kept}", problem.hint) from None

    def _say_again(self, state: RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        asked = (
            f" in {counted(round(problem.after), 'second')}, as it asks"
            if isinstance(problem, _TryAgain) and problem.after
            else ""
        )
        self.report(Notice(f"{problem}; trying again{asked}"))

    def _advance(self, client: httpx2.Client) -> bool:
        """One request. True: the file is complete; False: some of it came; _TryAgain: next to nothing came."""
        import httpx2

        before = self.have
        try:
            return self._request(client)
        except _StartOver as problem:
            self._start_over(str(problem))
            return False
        except httpx2.TransportError as problem:
            self.connected = self.connected or not unreachable(problem, self.url)
            reason, hint = self._reason(problem)
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            raise DownloadError(f"{shown_address(self.url)}: {problem}") from None
        except OSError as problem:
            self._give_up_on(problem)
        if self.have - before < self.retry_policy.progress_bytes:
            raise _TryAgain(reason, hint=hint)
        self.report(Notice(f"{reason} after {self.have:,} bytes; going on from there"))
        return False

    def _reason(self, problem: httpx2.TransportError) -> tuple[str, str]:
        import httpx2

        if isinstance(problem, httpx2.ConnectTimeout):
            return f"no connection within {self.retry_policy.connect_seconds:g} seconds", NO_NETWORK
        if isinstance(problem, httpx2.TimeoutException):
            return f"no data for {self.retry_policy.stall_seconds:g} seconds", TRY_AGAIN
        if not isinstance(problem, httpx2.ConnectError):
            return f"the connection broke ({problem or type(problem).__name__})", TRY_AGAIN
        if distrust := distrusted_certificate(problem):
            raise certificate_error(self.url, distrust) from None
        return plain(problem), NO_NETWORK

    def _request(self, client: httpx2.Client) -> bool:
        headers = {"Range": f"bytes={self.have}-"} if self.have else {}
        if self.have and self.validator:
            headers["If-Range"] = self.validator
        with client.stream("GET", self.url, headers=headers) as response:
            self.connected = True
            if self.url.startswith("https:") and any(r.url.scheme != "https" for r in (*response.history, response)):
                raise DownloadError(f"{shown_address(self.url)} redirects to plain http: refused")
            total = self.total = self._accept(response)
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
            after = retry_after(response)
            if after > self.retry_policy.longest_asked:
                raise DownloadError(
                    f"{shown_address(self.url)}: {answer_of(response)} and asks for a pause of {after:,.0f} seconds",
                    "pull again after that; what came so far is kept",
                )
            raise _TryAgain(answer_of(response), after)
        if status == 416:  # nothing beyond what is here: complete, or another file
            if self.have and response.headers.get("Content-Range") == f"bytes */{self.have}":
                return self.have
            raise _StartOver("the server has fewer bytes than were here")
        if status not in (200, 206):
            moved = "it may have moved; `cloob zoo show` names the model's home" if status in (404, 410) else None
            raise DownloadError(f"{shown_address(self.url)}: {answer_of(response)}", moved)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{shown_address(self.url)}: the server sent a re-encoded file")
        validator = validator_of(response)
        if status == 206:
            return self._accept_rest(response, validator)
        if self.have:
            reason = "the file changed" if validator != self.validator else "the server cannot resume"
            self._start_over(reason)
        self.partial.unlink(missing_ok=True)  # before the note: old bytes must never stand beside a new validator
        self.validator = validator
        with replacing(self.notes) as temporary:
            temporary.write_text(json.dumps({"url": shown_address(self.url), "validator": validator}), encoding="utf-8")
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
                if self.total is None:
                    self._bound(len(block))

    def _bound(self, came: int) -> None:
        """Stop a file whose size nobody said before it fills the disk."""
        try:
            if self.have > self.retry_policy.most_unsaid:
                raise DownloadError(
                    f"{shown_address(self.url)}: {self.have:,} bytes came and no end, of a file whose size is not said",
                    "fetch it with another program, then: cloob zoo pull FILE",
                )
            if self.have // _LOOK_AT_THE_DISK != (self.have - came) // _LOOK_AT_THE_DISK:
                check_space(self.partial.parent, int(self.have * (self.room_factor - 1)), self.free)
        except (DownloadError, DiskSpaceError):
            self.partial.unlink(missing_ok=True)
            raise

    def _start_over(self, reason: str) -> None:
        self.restarts += 1
        if self.restarts >= self.retry_policy.attempts:
            raise DownloadError(f"{shown_address(self.url)}: {reason}, {self.restarts} times", TRY_AGAIN)
        self.report(Notice(f"{reason}; starting over"))
        self.have, self.validator, self.hash = 0, None, hashlib.sha256()
        self.partial.unlink(missing_ok=True)

    def _give_up_on(self, problem: OSError) -> NoReturn:
        if problem.errno in FULL_DISK:
            raise DiskSpaceError(
                f"the disk is full: {self.partial.parent}", "what came is kept; free some room and pull again"
            ) from None
        raise problem


def paths_of(url: str) -> tuple[Path, Path, Path]:
    """The paths of the unfinished file of an address, the note beside it and the finished file."""
    key = lock_name(url)
    return tuple(downloads_folder() / f"{key}.{end}" for end in ("partial", "json", "complete"))  # type: ignore[return-value]
