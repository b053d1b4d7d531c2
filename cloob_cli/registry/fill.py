"""From what was fetched to the files of a model folder: copied, unpacked or converted, then opened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.errors import ModelFolderError
from cloob_cli.registry import store
from cloob_cli.registry.bundle import extract_bundle, is_bundle
from cloob_cli.registry.cards import Card
from cloob_cli.registry.claims import refuse_taken_name
from cloob_cli.registry.events import Notice, Report
from cloob_cli.registry.inventory import read_json_object
from cloob_cli.registry.model_card import model_card
from cloob_cli.registry.obtain import Obtained
from cloob_cli.registry.origin import Origin
from cloob_cli.registry.storage import in_plain_names

if TYPE_CHECKING:
    from cloob_cli.convert import Converted


def fill_folder(folder: Path, source: Obtained, origin: Origin, config: Path | None, report: Report) -> None:
    """Make a sound model folder of what was fetched.

    Args:
        folder: an empty folder.
        config: the checkpoint's own configuration, where it is not known otherwise.

    Raises:
        ConversionError, UnsafeCheckpointError, ModelFolderError, ChecksumError: it is no sound model.
    """
    path = source.path
    if path.is_file() and is_bundle(path):
        extract_bundle(path, folder, list(store.KEPT_FILES))
    elif path.is_dir() and _is_ours(path):
        for name in store.KEPT_FILES:
            if (path / name).is_file():
                shutil.copyfile(path / name, folder / name)
    elif path.is_file() and origin.format == "cloob":
        _fill_from_weights(folder, path)
    else:
        _convert(folder, source, origin, config, report)
        return
    _prove(folder)


def convert_to_folder(
    checkpoint: Path, folder: Path, format: str | None = None, config: Path | None = None
) -> list[str]:
    """Convert another program's checkpoint to a model folder.

    Returns:
        The names of the source's tensors that have no place in the model.

    Raises:
        UnsafeCheckpointError, ConversionError: it is refused, or does not have the layout of its format.
        RegistryError: the folder has the name of a card.
    """
    from cloob_cli.convert import convert_checkpoint

    refuse_taken_name(folder.name, remedy="name another folder")
    converted = convert_checkpoint(checkpoint, format, config, name=folder.name)
    with in_plain_names(folder, str(folder)):
        _save(folder, converted, checkpoint.name, None, None)
    return converted.ignored


def _prove(folder: Path) -> None:
    """Open the model as anybody would; hold it against the fingerprint that it brought, or store its first one."""
    from cloob_cli.checkpoint.fingerprint import check_fingerprint, write_fingerprint

    if (folder / store.FINGERPRINT_FILE).is_file():
        check_fingerprint(folder)
    else:
        write_fingerprint(folder)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is in our form; a config.json of transformers has a model_type, ours has a format_version."""
    try:
        store.read_config(folder)
    except ModelFolderError:
        # Ours, but spoilt, or another program's: what its configuration says of itself decides.
        return store.is_model_folder(folder) and "format_version" in read_json_object(folder / store.CONFIG_FILE)
    return True


def _fill_from_weights(folder: Path, weights: Path) -> None:
    shutil.copyfile(weights, folder / store.WEIGHTS_FILE)
    config = store.read_config(folder)
    store.write_config(folder, config)
    tokenizer = weights.with_name(store.TOKENIZER_FILE)
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, folder / store.TOKENIZER_FILE)
    elif config.tokenizer.kind == "clip":
        from cloob_cli.data.text import clip_tokenizer

        clip_tokenizer(config.text.context_length).save(folder / store.TOKENIZER_FILE)


def _convert(folder: Path, source: Obtained, origin: Origin, config: Path | None, report: Report) -> None:
    from cloob_cli.convert import convert_checkpoint

    said = origin.card.source if origin.card else None
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
    _save(folder, converted, origin.public, source.sha256, origin.card)


def _save(folder: Path, converted: Converted, origin: str, sha256: str | None, card: Card | None) -> None:
    model = converted.model
    source = model.config.source | {"origin": origin} | ({"sha256": sha256} if sha256 else {})
    model.config = model.config.model_copy(update={"source": source})
    text = model_card(model.config.name, model.config, card)
    store.save_model(folder, model, converted.tokenizer, card_text=text)
