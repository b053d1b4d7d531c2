"""Fill a model folder from files of another form: copied, unpacked or converted, then opened as anybody would."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.atomic_files import link_or_copy
from cloob_cli.checkpoint.behavior_fingerprint import FINGERPRINT_FILE
from cloob_cli.checkpoint.folder import (
    CONFIG_FILE,
    CONFIG_KEY,
    KEPT_FILES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    check_fingerprint,
    is_model_folder,
    read_config,
    save_model,
    store_fingerprint,
    write_config,
)
from cloob_cli.checkpoint.safetensors_file import read_header
from cloob_cli.convert.folder_formats import foreign_form
from cloob_cli.errors import ModelFolderError
from cloob_cli.registry.bundle import extract_bundle, is_bundle
from cloob_cli.registry.entries import ZooEntry, refuse_taken_name, score_rows
from cloob_cli.registry.events import Notice, Report
from cloob_cli.registry.fetch import Fetched
from cloob_cli.registry.inventory import read_json_object
from cloob_cli.registry.resolve import Origin
from cloob_cli.registry.storage import in_plain_names

if TYPE_CHECKING:
    from cloob_cli.convert import Converted


def convert_to_folder(
    checkpoint: Path,
    folder: Path,
    format: str | None = None,
    config: Path | None = None,
    origin: str | None = None,
) -> list[str]:
    """Convert another program's checkpoint to a model folder.

    Args:
        origin: the place of the checkpoint, for the model's configuration; None: its file's name.

    Returns:
        The names of the source's tensors that have no place in the model.

    Raises:
        UnsafeCheckpointError, ConversionError: it is refused, or does not have the layout of its format.
        RegistryError: the folder has the name of an entry.
    """
    from cloob_cli.convert import convert_checkpoint

    refuse_taken_name(folder.name, remedy="name another folder")
    converted = convert_checkpoint(checkpoint, format, config, name=folder.name)
    with in_plain_names(folder, str(folder)):
        _save(folder, converted, origin or checkpoint.name, None, None)
    return converted.ignored


def fill(folder: Path, source: Fetched, origin: Origin, config: Path | None, report: Report) -> None:
    """Make a valid model folder of what was fetched.

    Args:
        folder: an empty folder.
        config: the checkpoint's own configuration, where it is not known otherwise.

    Raises:
        ConversionError, UnsafeCheckpointError, ModelFolderError, ChecksumError: it is no valid model.
    """
    path = source.path
    if path.is_file() and is_bundle(path):
        extract_bundle(path, folder, list(KEPT_FILES))
    elif path.is_dir() and _is_ours(path):
        for name in KEPT_FILES:
            if (path / name).is_file():
                # The Hub's cache never changes its files, so that both may have the large one.
                link = source.commit and name == WEIGHTS_FILE
                (link_or_copy if link else shutil.copyfile)(path / name, folder / name)
    elif path.is_file() and origin.format == "cloob" and CONFIG_KEY in read_header(path)[1]:
        _fill_from_weights(folder, path)
    else:
        _convert(folder, source, origin, config, report)
        return
    _prove(folder)


def _prove(folder: Path) -> None:
    """Open the model as anybody would; hold it against the fingerprint that it brought, or store its first one."""
    if (folder / FINGERPRINT_FILE).is_file():
        check_fingerprint(folder)
    else:
        store_fingerprint(folder)


def _is_ours(folder: Path) -> bool:
    """True where a folder is in our form; a config.json of transformers has a model_type, ours has a format_version."""
    if foreign_form(folder):
        return False
    try:
        read_config(folder)
    except ModelFolderError:
        # Ours, but spoilt, or another program's: what its configuration says of itself decides.
        return is_model_folder(folder) and "format_version" in read_json_object(folder / CONFIG_FILE)
    return True


def _fill_from_weights(folder: Path, weights: Path) -> None:
    shutil.copyfile(weights, folder / WEIGHTS_FILE)
    config = read_config(folder)
    write_config(folder, config)
    tokenizer = weights.with_name(TOKENIZER_FILE)
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)
    elif config.tokenizer.kind == "clip":
        from cloob_cli.data.tokenizer import clip_tokenizer

        clip_tokenizer(config.text.context_length).save(folder / TOKENIZER_FILE)


def _convert(folder: Path, source: Fetched, origin: Origin, config: Path | None, report: Report) -> None:
    from cloob_cli.convert import convert_checkpoint

    said = origin.entry.source if origin.entry else None
    described: Path | dict[str, Any] | None = config or (said.config if said else None)
    if described is None and said and said.architecture:
        described = {"architecture": said.architecture}  # a config.json that happens to lie beside the file has no say
    converted = convert_checkpoint(
        source.path,
        None if origin.format == "cloob" else origin.format,
        described,
        name=origin.name,
        tokenizer=source.tokenizer,
    )
    if converted.ignored:
        report(Notice(f"left out, as inference does not need them: {', '.join(converted.ignored)}"))
    stored = converted.as_it_is if source.commit else None
    _save(folder, converted, origin.public, source.sha256, origin.entry, stored)


def _save(
    folder: Path,
    converted: Converted,
    origin: str,
    sha256: str | None,
    entry: ZooEntry | None,
    stored: Path | None = None,
) -> None:
    from cloob_cli.checkpoint.card import model_card

    model = converted.model
    source = model.config.source | {"origin": origin} | ({"sha256": sha256} if sha256 else {})
    model.config = model.config.model_copy(update={"source": source})
    text = model_card(
        model.config,
        summary=f"{entry.summary}. Trained by its authors on {entry.data}." if entry else "",
        license=entry.license if entry else None,
        languages=entry.languages if entry else (),
        facts=_facts(source, entry),
        scores=score_rows(entry) if entry else (),
        usage=model.config.name,
    )
    save_model(folder, model, converted.tokenizer, card_text=text, stored=stored)


def _facts(source: dict[str, Any], entry: ZooEntry | None) -> dict[str, str]:
    known = {"converted from": source.get("origin"), "sha256 of the original": source.get("sha256")}
    if entry:
        known |= {"license": entry.license, "note": entry.license_note, "home": entry.homepage, "paper": entry.paper}
    return {label: str(value) for label, value in known.items() if value}
