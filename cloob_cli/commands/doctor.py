"""`cloob doctor`: system information for bug reports."""

from __future__ import annotations

from typing import Any

from cloob_cli import console
from cloob_cli.commands.options import JsonOption
from cloob_cli.text_format import counted


def doctor(json: JsonOption = False) -> None:
    """Print system information for a bug report.

    Versions, devices, folders and decoders, and warnings of what looks wrong.
    """
    from cloob_cli.diagnosis import diagnose

    found = diagnose()
    if json:
        console.json_document(found)
        return
    console.table(["what", "value"], _rows(found))
    for warning in found["warnings"]:
        console.warn(warning)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, version) for name, version in found["versions"].items()]
    for device in found["devices"]:
        details = [str(device["name"])]
        if "memory_bytes" in device:
            details += [str(console.file_size(device["memory_bytes"])), f"compute capability {device['capability']}"]
        if "threads" in device:
            details.append(counted(device["threads"], "thread"))
        rows.append((device["device"], ", ".join(details)))
    used = found["used"]
    rows.append(("used", f"{used['device']} ({used['why']}), {used['inference_dtype']} for inference"))
    model = found["default_model"]
    rows.append(("default model", f"{model['name']} (chosen by {model['chosen_by']})"))
    for what, folder in found["folders"].items():
        state = "" if folder["exists"] else ", not made yet"
        state += "" if folder["writable"] else ", read-only"
        rows.append((what, f"{folder['path']} ({console.file_size(folder['free_bytes'])} free{state})"))
    missing = {"heif": "no (pip install 'cloob[heif]')"}
    rows += [(name, "yes" if there else missing.get(name, "no")) for name, there in found["decoders"].items()]
    return [*rows, *found["environment"].items()]
