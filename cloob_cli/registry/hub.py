"""Models on the Hugging Face Hub, through huggingface_hub: its cache, token, endpoint and offline mode."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from cloob_cli.atomic_files import sha256_of
from cloob_cli.checkpoint.behavior_fingerprint import FINGERPRINT_FILE
from cloob_cli.checkpoint.folder import KEPT_FILES, WEIGHTS_FILE
from cloob_cli.convert.folder_formats import FOREIGN_FILES, OPEN_CLIP_WEIGHTS, TRANSFORMERS_WEIGHTS, needed_files
from cloob_cli.errors import ChecksumError, DownloadError, RegistryError, UnreachableError, UsageError
from cloob_cli.registry.events import Received, Report, Started, unreported
from cloob_cli.registry.http import check_proxies, distrusted_certificate, plain, remedy, unreachable
from cloob_cli.registry.storage import check_space, quarantine
from cloob_cli.text_format import first_line

# Whatever a model on the Hub may be made of, in any form. The last is rinna's.
READABLE_FILES = (*KEPT_FILES, *FOREIGN_FILES, "spiece.model")

_REFERENCE = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?/?")


@dataclass(frozen=True)
class Reference:
    """A repository on the Hub, and a branch, tag or commit of it (None: main)."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class HubFile:
    name: str
    size: int | None
    sha256: str | None


Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    reference: Reference
    commit: str
    files: tuple[HubFile, ...]
    kind: Kind = "model"


def parse_reference(text: str) -> Reference:
    """`hf://ORG/REPO[@REVISION]`; raises UsageError for anything else."""
    match = _REFERENCE.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is not of the form hf://ORG/REPO[@REVISION]")
    return Reference(match["repository"], match["revision"])


def offline_by_environment() -> bool:
    """True where `HF_HUB_OFFLINE` is set."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    """The address of the Hub, which `HF_ENDPOINT` changes."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def listing(reference: Reference, kind: Kind = "model") -> Listing:
    """Ask the Hub what a repository holds.

    Raises:
        DownloadError: no such repository or revision, no access, or no answer.
        UnreachableError: of these, no connection to the Hub.
        RegistryError: the list names a file outside of its folder.
    """
    from huggingface_hub import HfApi

    with plain_errors(reference):
        info = HfApi().repo_info(reference.repository, revision=reference.revision, repo_type=kind, files_metadata=True)
    siblings = getattr(info, "siblings", None)
    files = tuple(HubFile(one.rfilename, one.size, one.lfs.sha256 if one.lfs else None) for one in siblings or ())
    for file in files:
        check_inside(file.name, str(reference))
    return Listing(reference, str(info.sha), files, kind)


def check_inside(name: str, where: str) -> None:
    """Raise RegistryError where a file's name would leave the folder that it is written to, on any system."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if not path.parts or path.is_absolute() or path.drive or ".." in path.parts or "\0" in name:
            raise RegistryError(f"{where} names the file {name!r}, which lies outside of its folder: refused")


def wanted(found: Listing) -> list[str]:
    """The names of the files of a repository that its model is made from, in one form where it has several."""
    names = {file.name for file in found.files}
    if FINGERPRINT_FILE not in names and (needed := needed_files(names)):
        return sorted(needed)
    chosen = {*READABLE_FILES} - {*OPEN_CLIP_WEIGHTS}
    if WEIGHTS_FILE in names:
        chosen.discard("pytorch_model.bin")  # the same weights as a pickle
    return sorted(names & chosen)


def snapshot(found: Listing, names: Sequence[str], report: Report = unreported, force: bool = False) -> Path:
    """Bring the named files of a listing into the Hub's own cache.

    Returns:
        The folder of that commit in the cache.

    Raises:
        DownloadError, DiskSpaceError, ChecksumError.
    """
    from huggingface_hub import constants, hf_hub_download

    chosen = [file for file in found.files if file.name in names]
    if not chosen:
        raise DownloadError(f"{found.reference} has none of the files {', '.join(names)}")
    total = sum(file.size or 0 for file in chosen)
    check_space(Path(constants.HF_HUB_CACHE), total)
    report(Started(found.reference.repository, 0, total))
    bar, folder = _bar_class(report), Path()
    # One after the other and in this thread, as threads would not hear of a Ctrl-C; the small ones first.
    for file in sorted(chosen, key=lambda file: file.size or 0):
        with plain_errors(found.reference):
            path = Path(
                hf_hub_download(
                    found.reference.repository,
                    file.name,
                    repo_type=found.kind,
                    revision=found.reference.revision,
                    force_download=force,
                    tqdm_class=bar,
                )
            )
        folder = path.parents[len(PurePosixPath(file.name).parts) - 1]
        if folder.name != found.commit:
            raise DownloadError(f"{found.reference} changed while it was fetched", "pull again")
    for file in chosen:
        if file.sha256 and sha256_of(folder / file.name) != file.sha256:
            _quarantine(folder / file.name, file, found.reference)
    return folder


def cached(reference: Reference, names: Sequence[str], kind: Kind = "model") -> Path:
    """The folder of a repository in the Hub's cache, without asking the Hub.

    Raises:
        DownloadError: it is not there.
    """
    from huggingface_hub import snapshot_download

    with plain_errors(reference):
        return Path(
            snapshot_download(
                reference.repository,
                repo_type=kind,
                revision=reference.revision,
                allow_patterns=list(names),
                local_files_only=True,
            )
        )


def model_folder(text: str, report: Report = unreported) -> Path:
    """A model on the Hub, in our form or another program's, as a folder in the Hub's cache: `--model hf://ORG/REPO`.

    Raises:
        UsageError: not a reference.
        DownloadError: it is not there, not reachable and not cached, or has no weights in a form that is opened.
    """
    reference = parse_reference(text)
    if offline_by_environment():
        return cached(reference, READABLE_FILES)
    found = listing(reference)
    names = wanted(found)
    if not {*names} & {*TRANSFORMERS_WEIGHTS, *OPEN_CLIP_WEIGHTS}:
        raise DownloadError(
            f"{reference} has no {WEIGHTS_FILE}, and none of {', '.join(OPEN_CLIP_WEIGHTS)}",
            "cloob opens its own model folders, open_clip's, and transformers' CLIPModel in one file",
        )
    return snapshot(found, names, report)


def _quarantine(path: Path, file: HubFile, reference: Reference) -> None:
    actual, blob = sha256_of(path), path.resolve()
    kept = quarantine(blob, PurePosixPath(file.name).name)
    path.unlink(missing_ok=True)
    raise ChecksumError(
        f"{reference}: {file.name} is not the file that the Hub names: sha256 {actual}, expected {file.sha256}",
        f"it is quarantined as {kept}; pull again to fetch it anew",
    )


@contextmanager
def plain_errors(reference: Reference) -> Iterator[None]:
    import httpx2
    from huggingface_hub import errors

    check_proxies()
    try:
        yield
    except errors.GatedRepoError:
        raise DownloadError(f"{reference} is only for those who accepted its terms", "hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise DownloadError(
            f"the Hub has no repository {reference.repository}, or it is private", "check the name; or: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise DownloadError(f"{reference.repository} has no revision {reference.revision}") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        raise DownloadError(
            f"{reference} is not in the Hub's cache and could not be fetched", "it needs a network, and no offline mode"
        ) from None
    except (errors.HFValidationError, errors.HfUriError) as problem:
        raise UsageError(f"{reference}: {first_line(problem)}") from None
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, httpx2.HTTPError, ConnectionError) as problem:
        if distrust := distrusted_certificate(problem):
            raise DownloadError(
                f"{reference}: the Hub's certificate is not trusted here ({distrust})",
                "the authority of a company or of its proxy is named with SSL_CERT_FILE",
            ) from None
        error = UnreachableError if unreachable(problem, endpoint()) else DownloadError
        raise error(f"{reference}: {plain(problem)}", remedy(problem)) from None


def _bar_class(report: Report) -> Any:
    """A tqdm for huggingface_hub that draws nothing and reports instead."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Reporting(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # The other bars count files, and the bytes on the wire of what is compressed there.
            self._counts_bytes = options.get("unit") == "B" and not str(options.get("name", "")).endswith("transfer")
            super().__init__(*args, **(options | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts_bytes:
                report(Received(int(n or 0)))
            return None

    return Reporting
