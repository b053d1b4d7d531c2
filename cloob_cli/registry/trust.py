"""Trust on first use: the hash of a file that nobody has published a hash of is kept, and held from then on."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from cloob_cli.errors import RegistryError
from cloob_cli.files import replacing
from cloob_cli.registry.locks import lock
from cloob_cli.registry.store import home


def trust_file() -> Path:
    """The file that holds every address with the hash of what was first received from it."""
    return home() / "trusted.json"


def trusted_hash(address: str) -> str | None:
    """The sha256 that was recorded for an address, or None."""
    entry = _read().get(address)
    return entry["sha256"] if entry else None


def trust(address: str, sha256: str, replace: bool = False) -> None:
    """Record the sha256 of what an address gave; an earlier record stays as it is, unless it is to be replaced."""
    with lock("trusted.json"):
        entries = _read()
        if address in entries and not replace:
            return
        entries[address] = {"sha256": sha256, "first_seen": datetime.now(UTC).isoformat(timespec="seconds")}
        with replacing(trust_file()) as temporary:
            temporary.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read() -> dict[str, dict[str, str]]:
    path = trust_file()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {str(address): {"sha256": str(entry["sha256"])} | entry for address, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as problem:
        # Going on without it would trust whatever comes next.
        raise RegistryError(f"{path} cannot be read ({problem})", "repair it, or delete it to trust anew") from None
