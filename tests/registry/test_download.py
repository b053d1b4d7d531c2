"""Downloads against a real server that cuts, stalls, corrupts, changes and refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx2
import pytest
from file_server import Fault, FileServer, serving

from cloob_cli.errors import ChecksumError, CloobError, DiskSpaceError, DownloadError, UsageError
from cloob_cli.registry.datasets import fetched_text, zip_data_set
from cloob_cli.registry.download import Downloaded, Transfer, downloading
from cloob_cli.registry.events import Event, Notice, Received, Started
from cloob_cli.registry.http import RetryPolicy, remote_size, retry_after
from cloob_cli.registry.hub import listing, parse_reference
from cloob_cli.registry.paths import downloads_folder, quarantine_folder
from cloob_cli.registry.resolve import resolve

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(250_000)
HASH = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.02, stall_seconds=0.25, progress_bytes=1)
PATIENT = dataclasses.replace(QUICK, stall_seconds=60.0)  # for servers that never stall on machines that do


@pytest.fixture
def server() -> object:
    with serving(**{"model.pt": CONTENT}) as running:
        yield running


def download(url: str, **options: object) -> Downloaded:
    """A complete download; the lock of its file is given back at once."""
    with downloading(url, **options) as got:  # type: ignore[arg-type]
        return got


def get(server: FileServer, sha256: str | None = HASH, **options: object) -> tuple[bytes, Downloaded, list[Event]]:
    events: list[Event] = []
    result = download(
        f"{server.url}/model.pt",
        sha256=sha256,
        report=events.append,
        **{"retry_policy": QUICK} | options,  # type: ignore[arg-type]
    )
    return result.path.read_bytes(), result, events


def notices(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Notice))


def test_a_plain_download(server: FileServer) -> None:
    data, result, events = get(server, sha256=None)
    assert data == CONTENT
    assert result.sha256 == HASH
    assert events[0] == Started("model.pt", 0, len(CONTENT))
    assert sum(event.bytes for event in events if isinstance(event, Received)) == len(CONTENT)
    assert server.served_bytes == len(CONTENT)
    assert not list(downloads_folder().glob("*.partial"))


def test_a_finished_file_is_not_fetched_again(server: FileServer) -> None:
    get(server)
    get(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("sha256", [HASH, None])
def test_a_cut_connection_resumes_within_one_call(server: FileServer, sha256: str | None) -> None:
    server.faults = [Fault(cut_after=100_000), Fault(cut_after=50_000)]
    data, result, events = get(server, sha256)
    assert data == CONTENT
    assert server.served_bytes == len(CONTENT)
    assert [request[2] for request in server.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert "going on from there" in notices(events)
    assert result.fetched_bytes == len(CONTENT)


def test_what_came_is_kept_for_the_next_call(server: FileServer) -> None:
    server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError, match=r"503.*100,000 bytes that came are kept"):
        get(server)
    data, result, events = get(server)
    assert data == CONTENT
    assert result.fetched_bytes == 200_000
    assert events[0] == Started("model.pt", 100_000, len(CONTENT))
    assert server.served_bytes == len(CONTENT)


def test_a_stall_is_noticed_and_resumed(server: FileServer) -> None:
    server.faults = [Fault(stall_after=120_000)]
    data, _, events = get(server)
    assert data == CONTENT
    assert "no data for 0.25 seconds" in notices(events)
    assert server.served_bytes == len(CONTENT)


def test_a_server_that_hangs_for_ever_is_an_error(server: FileServer) -> None:
    server.faults = [Fault(stall_after=0)] * 3
    with pytest.raises(DownloadError, match="no data for"):
        get(server)


def test_a_server_without_ranges_starts_over_and_still_ends_right(server: FileServer) -> None:
    server.ranges = False
    server.faults = [Fault(cut_after=100_000)]
    data, _, events = get(server)
    assert data == CONTENT
    assert "the server cannot resume; starting over" in notices(events)


def test_a_server_without_ranges_that_always_cuts_is_an_error(server: FileServer) -> None:
    server.ranges = False
    server.faults = [Fault(cut_after=100_000)] * 9
    with pytest.raises(DownloadError, match="cannot resume, 3 times"):
        get(server)


def test_a_file_that_changed_between_two_tries_is_fetched_whole(server: FileServer) -> None:
    server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError):
        get(server, None)
    server.files["/model.pt"] = OTHER
    data, result, events = get(server, None)
    assert data == OTHER
    assert result.sha256 == hashlib.sha256(OTHER).hexdigest()
    assert "the file changed; starting over" in notices(events)


def test_a_part_of_another_file_is_not_put_behind_what_is_here(server: FileServer) -> None:
    """A server that sends the part although the condition does not hold; its validator tells."""
    server.faults = [Fault(cut_after=100_000), Fault(ignore_condition=True, new_content=OTHER)]
    data, result, events = get(server, None)
    assert data == OTHER
    assert result.sha256 == hashlib.sha256(OTHER).hexdigest()
    assert "the file changed; starting over" in notices(events)
    assert server.requests[1][2] == "bytes=100000-"


def test_a_file_that_keeps_changing_is_an_error(server: FileServer) -> None:
    server.faults = [Fault(cut_after=1000, new_content=bytes([n]) * 9000) for n in range(9)]
    with pytest.raises(DownloadError, match="the file changed, 3 times"):
        get(server, None)


def test_without_a_validator_only_a_known_hash_lets_a_later_call_resume(server: FileServer) -> None:
    server.etags = False
    server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError):
        get(server)
    server.served_bytes = 0
    data, _, _ = get(server)
    assert (data, server.served_bytes) == (CONTENT, 200_000)


def test_without_a_validator_and_a_hash_a_later_call_fetches_all(server: FileServer) -> None:
    server.etags = False
    server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError):
        get(server, None)
    server.served_bytes = 0
    data, _, _ = get(server, None)
    assert (data, server.served_bytes) == (CONTENT, len(CONTENT))


def test_a_wrong_file_is_set_aside_with_both_hashes_in_the_error(server: FileServer) -> None:
    wanted = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(ChecksumError) as caught:
        get(server, wanted)
    assert HASH in caught.value.message
    assert wanted in caught.value.message
    (aside,) = quarantine_folder().iterdir()
    assert str(aside) in str(caught.value.hint)
    assert aside.read_bytes() == CONTENT
    server.files["/model.pt"] = OTHER
    data, _, _ = get(server, wanted)
    assert data == OTHER


def test_a_corrupt_byte_is_found(server: FileServer) -> None:
    server.faults = [Fault(corrupt_at=77)]
    with pytest.raises(ChecksumError):
        get(server)
    data, _, _ = get(server)
    assert data == CONTENT


def test_a_partial_file_spoilt_on_disk_is_found(server: FileServer) -> None:
    server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError):
        get(server)
    (partial,) = downloads_folder().glob("*.partial")
    partial.write_bytes(b"x" * 100_000)
    with pytest.raises(ChecksumError):
        get(server)


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"validator": 3}', b'{"validator": null}', b"\xff"])
def test_a_spoilt_note_beside_a_partial_file_costs_bytes_at_most(server: FileServer, note: bytes) -> None:
    server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError):
        get(server, None)
    (path,) = downloads_folder().glob("*.json")
    path.write_bytes(note)
    assert get(server, None)[0] == CONTENT


def test_a_partial_file_longer_than_the_file_starts_over(server: FileServer) -> None:
    server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError):
        get(server)
    (partial,) = downloads_folder().glob("*.partial")
    partial.write_bytes(CONTENT + b"more")
    data, _, _ = get(server)
    assert data == CONTENT


def test_a_partial_file_that_was_complete_needs_no_bytes(server: FileServer) -> None:
    server.faults = [Fault(cut_after=100_000), *[Fault(status=503)] * 3]
    with pytest.raises(DownloadError):
        get(server)
    (partial,) = downloads_folder().glob("*.partial")
    partial.write_bytes(CONTENT)
    server.served_bytes = 0
    data, _, _ = get(server)
    assert (data, server.served_bytes) == (CONTENT, 0)


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_a_refusal_is_final(server: FileServer, status: int) -> None:
    server.faults = [Fault(status=status)]
    with pytest.raises(DownloadError, match=f"answered {status}"):
        get(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_error_is_tried_again(server: FileServer, status: int) -> None:
    server.faults = [Fault(status=status)] * 2
    data, _, events = get(server)
    assert data == CONTENT
    assert notices(events).count(str(status)) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_names_a_pause_is_left_alone_for_that_long(server: FileServer, status: int) -> None:
    slept: list[float] = []
    retry_policy = dataclasses.replace(QUICK, sleep=slept.append)
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    server.faults = [Fault(status=status, retry_after="17"), Fault(status=status, retry_after=moment)]
    events: list[Event] = []
    download(f"{server.url}/model.pt", sha256=HASH, report=events.append, retry_policy=retry_policy)
    assert slept[0] == 17
    assert 17 < slept[1] <= 90
    assert "trying again in 17 seconds, as it asks" in notices(events)


def test_a_pause_that_nobody_would_wait_for_is_an_error(server: FileServer) -> None:
    server.faults = [Fault(status=503, retry_after="86400")]
    with pytest.raises(DownloadError, match="asks for a pause of 86,400 seconds"):
        get(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "9" * 400, "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Foo 9999", "²"]
)
def test_what_a_server_may_say_of_its_pause(text: str) -> None:
    said = httpx2.Response(503, headers={"Retry-After": text.encode()})
    assert retry_after(said) == (999_999_999 if text.startswith("999") else 0)


def test_nobody_listens() -> None:
    with serving() as gone:
        pass
    with pytest.raises(DownloadError, match="no connection") as caught:
        get(gone)
    assert "check the network" in str(caught.value.hint)


def test_another_part_than_was_asked_for_is_not_glued_on(server: FileServer) -> None:
    server.faults = [Fault(cut_after=100_000), Fault(wrong_part=True)]
    data, _, events = get(server)
    assert data == CONTENT
    assert "another part" in notices(events)


def test_a_re_encoded_answer_is_refused(server: FileServer) -> None:
    server.faults = [Fault(content_encoding="gzip")]
    with pytest.raises(DownloadError, match="re-encoded"):
        get(server)


def test_a_redirect_is_followed(server: FileServer) -> None:
    server.files["/elsewhere"] = CONTENT
    server.faults = [Fault(location=f"{server.url}/elsewhere")]
    assert get(server)[0] == CONTENT


def test_an_endless_redirect_is_an_error(server: FileServer) -> None:
    server.faults = [Fault(location=f"{server.url}/model.pt")] * 40
    with pytest.raises(DownloadError, match="redirects"):
        get(server)


def test_a_length_that_is_not_said(server: FileServer) -> None:
    server.faults = [Fault(no_length=True)]
    data, _, events = get(server)
    assert data == CONTENT
    assert events[0] == Started("model.pt", 0, None)


def test_a_file_without_end_is_stopped_and_not_kept(server: FileServer) -> None:
    server.faults = [Fault(endless=True)]
    with pytest.raises(DownloadError, match="no end, of a file whose size is not said"):
        download(f"{server.url}/model.pt", retry_policy=dataclasses.replace(QUICK, most_unsaid=1_000_000))
    assert not list(downloads_folder().glob("*.partial"))
    assert len(server.requests) == 1


def test_a_file_without_end_does_not_fill_the_disk(server: FileServer) -> None:
    server.faults = [Fault(endless=True)]
    with pytest.raises(DiskSpaceError, match="not enough room"):
        download(f"{server.url}/model.pt", retry_policy=QUICK, free=lambda folder: 66 << 20, room_factor=2.0)
    assert not list(downloads_folder().glob("*.partial"))


def test_a_cut_that_nobody_can_see_is_found_by_the_hash(server: FileServer) -> None:
    server.faults = [Fault(no_length=True, cut_after=1000)]
    with pytest.raises(ChecksumError):
        get(server)


def test_an_empty_file(server: FileServer) -> None:
    server.files["/model.pt"] = b""
    data, result, _ = get(server, None)
    assert (data, result.sha256) == (b"", hashlib.sha256(b"").hexdigest())


def test_a_full_disk_is_seen_before_a_byte_is_written(server: FileServer) -> None:
    asked: list[Path] = []

    def nearly_full(folder: Path) -> int:
        asked.append(folder)
        return 70 << 20

    get(server, free=nearly_full)
    assert asked
    server.files["/model.pt"] = OTHER
    with pytest.raises(DiskSpaceError, match="not enough room"):
        get(server, hashlib.sha256(OTHER).hexdigest(), free=lambda folder: 100)
    assert not list(downloads_folder().glob("*.partial"))


def test_room_for_the_conversion_is_asked_for_too(server: FileServer) -> None:
    room = (64 << 20) + 2 * len(CONTENT)
    with pytest.raises(DiskSpaceError, match="67 MB to stay free"):
        get(server, room_factor=2.0, free=lambda folder: room - 1)
    get(server, room_factor=2.0, free=lambda folder: room)


def test_a_disk_that_fills_up_on_the_way(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, response: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Transfer, "_receive", full)
    with pytest.raises(DiskSpaceError, match="disk is full"):
        get(server)


@pytest.mark.parametrize(
    "url", ["http://example.com/x.pt", "ftp://example.com/x", "https://", "file:///etc/passwd", "https://[x"]
)
def test_other_addresses_are_refused_before_anything_is_sent(url: str) -> None:
    refused(url)


@pytest.mark.parametrize("host", ["[::1", "example.com:port", "example.com:99999"])
def test_an_address_that_is_none_is_refused(host: str) -> None:
    refused(f"https://{host}/x.pt")


def refused(url: str) -> None:
    others = (lambda url: resolve(url, name="x"), lambda url: zip_data_set(url, "x"), fetched_text)
    for action in (download, remote_size, *others):
        with pytest.raises(UsageError):
            action(url)


def test_credentials_in_an_address_are_not_shown(server: FileServer) -> None:
    address = server.url.replace("http://", "http://user:secret@") + "/nothing?token=secret"
    with pytest.raises(DownloadError) as caught:
        download(address, retry_policy=QUICK)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "foo://secret@bar", "http://127.0.0.1:notaport", ":::"])
def test_a_proxy_that_cannot_be_used_is_an_error(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    if proxy.startswith("socks"):
        monkeypatch.setitem(sys.modules, "socksio", None)
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    reference = parse_reference("hf://org/name")
    for action in (lambda: get(server), lambda: remote_size(server.url), lambda: listing(reference)):
        with pytest.raises(DownloadError, match=r"ALL_PROXY names (a SOCKS|no) proxy"):
            action()
    assert server.requests == []


def random_fault(draw: random.Random) -> Fault:
    where = draw.randrange(0, len(CONTENT))
    kinds = [
        lambda: Fault(cut_after=where),
        lambda: Fault(cut_after=where),
        lambda: Fault(stall_after=where),
        lambda: Fault(corrupt_at=where),
        lambda: Fault(status=503),
        lambda: Fault(ignore_range=True, cut_after=where),
    ]
    return draw.choice(kinds)()


@pytest.mark.parametrize("seed", range(50))
def test_fifty_random_faults_end_with_the_right_file_or_a_clear_error(seed: int) -> None:
    draw = random.Random(seed)
    faults = [random_fault(draw) for _ in range(draw.randint(1, 3))]
    stalls = any(fault.stall_after is not None for fault in faults)
    with serving(**{"model.pt": CONTENT}) as server:
        server.faults = list(faults)
        errors: list[CloobError] = []
        for _ in range(6):
            try:
                data, _, _ = get(server, retry_policy=QUICK if stalls else PATIENT)
                break
            except (DownloadError, ChecksumError) as error:
                errors.append(error)
        else:
            pytest.fail(f"never ended well: {errors}")
    assert data == CONTENT
    assert not any("\n" in error.message for error in errors)
    # Bytes are sent twice only where the server itself ignored the range or corrupted what it sent; and where a quarter
    # of a second was too short for a busy machine.
    if not stalls and not any(fault.ignore_range or fault.corrupt_at is not None for fault in faults):
        assert server.served_bytes == len(CONTENT)
