"""HTTP clients, addresses and answers: retry policy, proxies, certificates, Retry-After, validators."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from cloob_cli.errors import DownloadError, UnreachableError, UsageError
from cloob_cli.text_format import first_line

if TYPE_CHECKING:
    import httpx2


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of a download. An attempt counts as failed where it brought less than `progress_bytes`.

    Attributes:
        longest_asked: seconds; the longest wait that a server may ask for (Retry-After).
        most_unsaid: bytes that a server may send which does not say how many there are.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 30.0
    connect_seconds: float = 15.0
    stall_seconds: float = 20.0
    progress_bytes: int = 1 << 16
    longest_asked: float = 120.0
    most_unsaid: int = 16 << 30
    sleep: Callable[[float], None] = time.sleep


class Hosts:
    """Servers that are asked for several files: one that cannot be reached is not tried again for the next file."""

    def __init__(self) -> None:
        self._unreachable: set[str] = set()

    @contextmanager
    def trying(self, url: str) -> Iterator[None]:
        """Remember whether the body finds the server of `url` unreachable.

        Raises:
            UnreachableError: it was found so before, or now, by the body.
        """
        host = host_of(url)
        if host in self._unreachable:
            raise UnreachableError(f"{host} cannot be reached", NO_NETWORK)
        try:
            yield
        except UnreachableError:
            self._unreachable.add(host)
            raise


TRY_AGAIN = "try again later"
NO_NETWORK = "check the network of this machine; HTTPS_PROXY names a proxy"
_PROXY_VARIABLES = ("all_proxy", "https_proxy", "http_proxy")


def check_address(url: str) -> None:
    """Raise UsageError unless `url` is https (plain http only to this machine)."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # looked at only when it is asked for
    except ValueError:
        raise UsageError(f"{url!r} is not an address") from None
    if not parts.hostname or parts.scheme not in {"https", "http"}:
        raise UsageError(f"{url!r} is not an https address")
    if parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        raise UsageError(
            f"refusing plain http ({parts.hostname}): anybody on the way could change the file", "use https"
        )


def http_client(**options: Any) -> httpx2.Client:
    """A client that follows redirects and takes files as they are.

    Raises:
        DownloadError: the environment names a proxy that cannot be used.
    """
    import httpx2

    headers = {"Accept-Encoding": "identity"}
    try:
        return httpx2.Client(follow_redirects=True, headers=headers, **options)
    except ImportError:
        raise DownloadError(f"{_proxies()} names a SOCKS proxy, which needs a package", "pip install socksio") from None
    except (ValueError, httpx2.InvalidURL) as problem:
        raise DownloadError(f"{_proxies()} names no proxy: {problem}", "it is like http://HOST:PORT") from None


def check_proxies() -> None:
    """Raise DownloadError where the environment names a proxy that cannot be used."""
    if getproxies():
        http_client().close()


def distrusted_certificate(problem: BaseException | None) -> str | None:
    """The reason why a server's certificate was refused, or None where that is not the cause of an error."""
    while problem is not None:
        if isinstance(problem, ssl.SSLCertVerificationError):
            return problem.verify_message or str(problem)
        problem = problem.__cause__ or problem.__context__
    return None


def certificate_error(url: str, reason: str) -> DownloadError:
    """The error for a refused certificate, which trying again would not help."""
    return DownloadError(
        f"{shown_address(url)}: its certificate is not trusted here ({reason})",
        "the authority of a company or of its proxy is named with SSL_CERT_FILE",
    )


def retry_after(response: httpx2.Response) -> float:
    """The seconds after which a server wants to be asked again (RFC 9110, section 10.2.3); 0 where it does not say."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def answer_of(response: httpx2.Response) -> str:
    """A server's answer in words."""
    return f"the server answered {response.status_code} {response.reason_phrase}"


def shown_address(url: str) -> str:
    """An address without the credentials that it may hold."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def host_of(url: str) -> str:
    """The server of an address, with its port where one is named."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def unreachable(problem: BaseException, url: str) -> bool:
    """True where a request failed as there was no connection to the server of `url` itself.

    An address may lead on to another server, which says nothing of the first one.
    """
    import httpx2

    if not isinstance(problem, httpx2.ConnectError | httpx2.ConnectTimeout):
        return False
    try:
        asked = problem.request.url
    except RuntimeError:  # it does not know
        return False
    return host_of(str(asked)) == host_of(url)


def validator_of(response: httpx2.Response) -> str | None:
    """The validator for If-Range, where the server gives one of which equal values mean equal bytes."""
    etag = response.headers.get("ETag")
    if etag and etag.isascii() and not etag.startswith("W/"):  # a weak one does not promise equal bytes
        return str(etag)
    modified = response.headers.get("Last-Modified")
    return str(modified) if modified else None


def plain(problem: Exception) -> str:
    """The reason that a failed request gives, in one line."""
    import httpx2

    said = first_line(problem)
    return f"no connection ({said})" if isinstance(problem, httpx2.ConnectError) else said


def remedy(problem: Exception) -> str:
    """The hint about a failed request."""
    import httpx2

    return NO_NETWORK if isinstance(problem, httpx2.ConnectError) else TRY_AGAIN


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
        raise DownloadError(f"{shown_address(url)}: {plain(problem)}", remedy(problem)) from None
    if response.is_error:
        raise DownloadError(f"{shown_address(url)}: {answer_of(response)}")
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _proxies() -> str:
    """The variables of the environment that name one; their values may hold a password."""
    names = [name for name in os.environ if name.lower() in _PROXY_VARIABLES and os.environ[name]]
    return " or ".join(names) or "this machine"
