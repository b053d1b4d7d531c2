"""Hashes pinned on first use: where nobody published a file's hash, the first one received is held from then on."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from cloob_cli.atomic_files import replacing
from cloob_cli.errors import RegistryError
from cloob_cli.registry.locks import lock
from cloob_cli.registry.paths import pinned_hashes_file


def pinned_hash(address: str) -> str | None:
    """The sha256 that was recorded for an address, or None."""
    entry = _read().get(address)
    return entry["sha256"] if entry else None


def pin_hash(address: str, sha256: str, replace: bool = False) -> None:
    """Record the sha256 of what an address gave; an earlier record stays as it is, unless it is to be replaced."""
    with lock("pinned_hashes.json"):
        entries = _read()
        if address in entries and not replace:
            return
        entries[address] = {"sha256": sha256, "first_seen": datetime.now(UTC).isoformat(timespec="seconds")}
        with replacing(pinned_hashes_file()) as temporary:
            temporary.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read() -> dict[str, dict[str, str]]:
    path = pinned_hashes_file()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {str(address): {"sha256": str(entry["sha256"])} | entry for address, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as problem:
        # Going on without it would pin whatever comes next.
        raise RegistryError(f"{path} cannot be read ({problem})", "repair it, or delete it to pin anew") from None
