"""The model folder, the form in which models are kept: write one, open one, and say what is wrong with one.

It holds `config.json`, `model.safetensors` (with the same configuration in its metadata, so that the file alone says
what it is), `tokenizer.json`, `README.md` and `fingerprint.safetensors`. Opening one never runs anything it contains.
Folders of open_clip and of transformers' CLIPModel are opened in their place, without being converted on the disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.atomic_files import link_or_copy, replacing, replacing_folder, sha256_of
from cloob_cli.checkpoint.behavior_fingerprint import (
    FINGERPRINT_FILE,
    compare_fingerprint,
    compute_fingerprint,
    read_fingerprint,
)
from cloob_cli.checkpoint.safetensors_file import read_header, read_tensors, write_tensors
from cloob_cli.convert.folder_formats import foreign_form
from cloob_cli.errors import ConversionError, ModelFolderError
from cloob_cli.strict_model import parse
from cloob_cli.text_format import first_line

if TYPE_CHECKING:
    import torch

    from cloob_cli.core.model import CloobModel
    from cloob_cli.core.model_config import ModelConfig
    from cloob_cli.data.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
README_FILE = "README.md"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, README_FILE)
KEPT_FILES = (*MODEL_FILES, FINGERPRINT_FILE)
CONFIG_KEY = "config"  # in the metadata of the weights

_CLIP_VOCABULARY = 49408
_DEEPEST = 50  # levels of a configuration; our own, with the recipe in it, has five


def is_model_folder(folder: Path) -> bool:
    """True where a folder holds weights in our form (it may still prove invalid when it is opened)."""
    return (folder / WEIGHTS_FILE).is_file()


def save_model(
    folder: Path,
    model: CloobModel,
    tokenizer: Tokenizer,
    *,
    card_text: str,
    dtype: torch.dtype | None = None,
    stored: Path | None = None,
) -> None:
    """Write a model folder; an existing one is replaced as a whole, or left as it was on any error.

    Args:
        dtype: what floating-point tensors are stored as; None keeps them as they are.
        card_text: the contents of README.md.
        stored: a safetensors file of exactly these tensors that nobody will change (one of the Hub's cache): it is
            linked into the folder and takes no further room, or copied where that cannot be.

    The folder is opened once and its fingerprint stored in it, for `cloob zoo verify --deep`.
    """
    with replacing_folder(Path(folder)) as temporary:
        if stored is not None:
            link_or_copy(stored, temporary / WEIGHTS_FILE)
        else:
            tensors = {
                name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
                for name, tensor in model.state_dict().items()
            }
            metadata = {"format": "pt", CONFIG_KEY: model.config.model_dump_json(exclude_none=True)}
            write_tensors(tensors, temporary / WEIGHTS_FILE, metadata)
        write_config(temporary, model.config)
        tokenizer.save(temporary / TOKENIZER_FILE)
        (temporary / README_FILE).write_text(card_text, encoding="utf-8")
        store_fingerprint(temporary)


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write `config.json`."""
    text = config.model_dump_json(indent=2, exclude_none=True)
    (Path(folder) / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def open_model(
    folder: Path, device: str | torch.device | None = None, dtype: torch.dtype | str | None = None
) -> CloobModel:
    """Open a model folder for inference: evaluation mode, no gradients, `preprocess` and `tokenize` attached.

    Args:
        folder: in our form, in open_clip's, or in that of transformers' CLIPModel.
        device: None picks the best one here.
        dtype: of the weights, also "fp32" or "float32" and the like; None: float16 on CUDA, float32 elsewhere,
            whatever the file stores.

    Raises:
        ModelFolderError: a file is missing, truncated, foreign, or does not belong to the others.
        DeviceError: no such device or number format.
    """
    import torch

    from cloob_cli.core.device import pick_device, pick_dtype
    from cloob_cli.core.model import with_weights
    from cloob_cli.data.preprocess import Preprocess

    folder = Path(folder)
    chosen_device = pick_device(str(device) if device is not None else None)
    chosen_dtype = dtype if isinstance(dtype, torch.dtype) else pick_dtype(chosen_device, _short(dtype))
    if foreign_form(folder):
        return _open_foreign(folder).to(chosen_device, chosen_dtype)
    config = read_config(folder)
    _check_depth(folder, config)
    tokenizer = _open_tokenizer(folder, config)
    weights = read_tensors(folder / WEIGHTS_FILE, chosen_device, chosen_dtype)
    try:
        model = with_weights(config, weights)
    except ModelFolderError as problem:
        raise ModelFolderError(f"{folder}: {problem.message}", problem.hint) from None
    except (TypeError, OverflowError, RuntimeError) as problem:  # sizes that no tensor can have
        raise ModelFolderError(f"{folder}: its configuration cannot be built ({first_line(problem)})") from None
    model.eval().requires_grad_(False)
    model.preprocess = Preprocess(config.vision.image_size, config.preprocess)
    model.tokenize = tokenizer
    return model


def _open_foreign(folder: Path) -> CloobModel:
    from cloob_cli.convert import convert_checkpoint
    from cloob_cli.data.preprocess import Preprocess

    try:
        converted = convert_checkpoint(folder, foreign_form(folder), name=_name_of(folder))
    except ConversionError as problem:
        raise ModelFolderError(problem.message, problem.hint) from None
    model = converted.model
    model.preprocess = Preprocess(model.config.vision.image_size, model.config.preprocess)
    model.tokenize = converted.tokenizer
    return model


def _name_of(folder: Path) -> str:
    """A foreign folder's own name; in the Hub's cache, whose folders are called by their commits, the repository's."""
    folder = folder.resolve()
    repository = folder.parents[1].name if folder.parent.name == "snapshots" else ""
    return repository.split("--")[-1] or folder.name


def store_fingerprint(folder: Path) -> None:
    """Open the model in `folder` as anybody would, and store its fingerprint there.

    Raises:
        ModelFolderError: it cannot be opened.
    """
    found = compute_fingerprint(open_model(folder, "cpu", "fp32"))
    with replacing(Path(folder) / FINGERPRINT_FILE) as temporary:
        write_tensors(found, temporary)


def check_fingerprint(folder: Path, device: str = "cpu", dtype: torch.dtype | str | None = None) -> str:
    """Compare what the model in `folder` computes with its stored fingerprint; gives a line that says how near it is.

    Args:
        device, dtype: where and in what it is computed; None: float32.

    Raises:
        VerificationError: a stage gives something else; the first one is named.
        ModelFolderError: the model or its fingerprint cannot be opened.
    """
    expected = read_fingerprint(Path(folder) / FINGERPRINT_FILE)
    return compare_fingerprint(open_model(folder, device, dtype or "fp32"), expected)


def _short(dtype: str | None) -> str | None:
    """torch's own names of number formats as well as the short ones."""
    return {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(dtype, dtype) if dtype else None


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder, from its weights' metadata and its config.json; they must agree.

    Of a folder of open_clip or transformers, what its own configuration comes to here.

    Raises:
        ModelFolderError: neither holds one, one of them is wrong, or they differ.
    """
    from cloob_cli.core.model_config import ModelConfig

    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is not a folder")
    if foreign_form(folder):
        from cloob_cli.convert import describe_folder

        try:
            return describe_folder(folder).model_copy(update={"name": _name_of(folder)})
        except ConversionError as problem:
            raise ModelFolderError(problem.message, problem.hint) from None
    _, metadata = read_header(folder / WEIGHTS_FILE)
    found: list[ModelConfig] = []
    if CONFIG_KEY in metadata:
        where = f"{folder / WEIGHTS_FILE} (metadata)"
        found.append(parse(ModelConfig, _json(metadata[CONFIG_KEY], where), where, ModelFolderError))
    path = folder / CONFIG_FILE
    if path.is_file():
        found.append(parse(ModelConfig, _json(_read(path), str(path)), str(path), ModelFolderError))
    if not found:
        raise ModelFolderError(
            f"{folder} has no {CONFIG_FILE} and its {WEIGHTS_FILE} holds no configuration",
            "a checkpoint of another program is converted with `cloob zoo convert`",
        )
    if found[0] != found[-1]:
        key = next(key for key in type(found[0]).model_fields if getattr(found[0], key) != getattr(found[-1], key))
        raise ModelFolderError(
            f"{path} differs from the configuration in {WEIGHTS_FILE} (at '{key}')",
            f"delete {CONFIG_FILE} to use the one in {WEIGHTS_FILE}",
        )
    return found[0]


def file_hashes(folder: Path) -> dict[str, str]:
    """The hex sha256 of each of `KEPT_FILES` that a folder holds."""
    return {name: sha256_of(folder / name) for name in KEPT_FILES if (folder / name).is_file()}


def weights_sha256(folder: Path) -> str:
    """The hex sha256 of a model folder's weights file.

    Raises:
        ModelFolderError: the folder has none.
    """
    path = Path(folder) / WEIGHTS_FILE
    if foreign_form(Path(folder)):
        from cloob_cli.convert import locate

        path = locate(Path(folder))
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no {WEIGHTS_FILE}")
    return sha256_of(path)


def _check_depth(folder: Path, config: ModelConfig) -> None:
    # A configuration may claim a million layers; building them to compare the names would take for ever.
    header, _ = read_header(folder / WEIGHTS_FILE)
    vision = config.vision.layers
    depth = config.text.layers + (sum(vision) if isinstance(vision, list) else vision)
    largest = max((math.prod(shape) for _, shape in header.values()), default=0)
    if depth > len(header) or max(config.vision.width, config.text.width, config.embed_dim) > largest:
        raise ModelFolderError(f"{folder}: the configuration describes a far larger model than {WEIGHTS_FILE} holds")


def _open_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    from cloob_cli.data.tokenizer import Tokenizer, clip_tokenizer

    path, kind, size = folder / TOKENIZER_FILE, config.tokenizer.kind, config.text.vocab_size
    if not 0 <= config.tokenizer.pad_id < size:
        raise ModelFolderError(
            f"{folder}: tokenizer.pad_id is {config.tokenizer.pad_id}, the text tower has {size} ids"
        )
    if not path.is_file():
        if kind == "clip" and size == _CLIP_VOCABULARY:
            return clip_tokenizer(config.text.context_length)  # the package carries the very same vocabulary
        raise ModelFolderError(f"{folder} has no {TOKENIZER_FILE}", "copy it from where the weights came from")
    tokenizer = Tokenizer(path, config.tokenizer, config.text.context_length, id_limit=size)
    # CLIP's own vocabulary is let through with a cut-down text tower: its low ids still mean what they say.
    fits = tokenizer.vocab_size == _CLIP_VOCABULARY if kind == "clip" else tokenizer.vocab_size <= size
    if not fits:
        raise ModelFolderError(
            f"{path} has ids below {tokenizer.vocab_size}, the text tower has {size} of them: it is another model's"
        )
    return tokenizer


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ModelFolderError(f"{path} cannot be read ({problem})") from None


def _json(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ModelFolderError(f"{where} is not valid JSON ({problem})") from None
    # What can be read may still be too deep for all that compares, writes and shows it.
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for part in level for item in _items(part)]
        if not level:
            return value
    raise ModelFolderError(f"{where} is nested more than {_DEEPEST} levels deep")


def _items(part: Any) -> Iterable[Any]:
    if isinstance(part, dict):
        return part.values()
    return part if isinstance(part, list) else ()
