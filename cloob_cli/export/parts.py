"""Parts that the exports share: reasons to refuse a model, the tokenizer's files, and the README."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloob_cli.checkpoint.folder import README_FILE, TOKENIZER_FILE
from cloob_cli.errors import NotExportableError

if TYPE_CHECKING:
    from cloob_cli.core.model import CloobModel
    from cloob_cli.core.model_config import ModelConfig
    from cloob_cli.data.tokenizer import Tokenizer

_CLIP_VOCABULARY = 49408
# Patterns of what cleaning does before it takes lower case, where a file can express it: straight quotation marks, and
# the Greek letter that has another form at the end of a word.
_QUOTES = (("[\u02bc\u2018-\u201b]", "'"), ("[\u201c-\u201f]", '"'))
_FINAL_SIGMA = (("(?<=\\p{L})\u03a3(?!\\p{L})", "\u03c2"),)

# For the READMEs of exports: what this program does when it opens an image, in Pillow's own terms.
OPEN_RGB = """\
def open_rgb(path):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")"""


def refuse(program: str, reasons: dict[str, bool]) -> None:
    """Raise NotExportableError with the reasons that hold, if one does."""
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise NotExportableError(
            f"{program} has no architecture with {'; '.join(found)}", "`--to onnx` can express every model"
        )


def not_of_clip(config: ModelConfig) -> dict[str, bool]:
    """Reasons for `refuse`: what neither open_clip's CLIP class nor that of transformers has."""
    return {
        "an adapter behind a tower": config.vision.adapter is not None or config.text.adapter is not None,
        "a bias in the image projection": config.vision.projection_bias,
        "a bias in the patch embedding": config.vision.patch_bias,
        "a stem of convolutions before a vision transformer": config.vision.stem == "conv",
        "a text tower that masks its padding": config.text.padding != "ignored",
        "norms after the text tower's layers": config.text.post_norm,
        "a norm of the text's embeddings": config.text.norm_embedding,
        "no norm after the text tower": not config.text.norm_final,
        "a tokenizer of its own kind": config.tokenizer.kind not in ("clip", "bpe"),
        "cutting of texts as ml-jku's program cuts them": config.tokenizer.truncation != "end",
        "a text tower with fewer entries than its tokenizer": (
            config.tokenizer.kind == "clip" and config.text.vocab_size != _CLIP_VOCABULARY
        ),
        "CLIP's tokenizer without lower case": config.tokenizer.kind == "clip" and not config.tokenizer.lower_case,
    }


def foreign_padding(config: ModelConfig) -> dict[str, bool]:
    """Reasons for `refuse`: padding that a text's embedding depends on, where a tower sees what follows the end.

    transformers takes every occurrence of a padding token in a text for padding, so a token that occurs in texts
    ("!" is id 0 of CLIP's form of a vocabulary) cannot be one: texts are padded with the end token, which is right
    where nothing after the end is seen.
    """
    sees_padding = not config.text.causal
    return {
        "padding that is not 0": sees_padding and config.tokenizer.pad_id != 0,
        "a trained vocabulary in a text tower that sees its padding": sees_padding and config.tokenizer.kind == "bpe",
    }


def write_tokenizer(own: Tokenizer, config: ModelConfig, target: Path, *, cleaned_before: bool) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` as transformers reads them.

    Args:
        own: the model's.
        cleaned_before: texts come clean, in lower case where the model wants that; normalizing them once more is not
            always the same. Otherwise the file normalizes as far as it can.
    """
    described: dict[str, Any] = json.loads(own.to_json())
    start, end = config.tokenizer.start_token, config.tokenizer.end_token
    described["padding"] |= {"pad_id": own.rows([""])[0][-1], "pad_token": end}
    described["normalizer"] = None if cleaned_before else _normalizer(described["normalizer"], config)
    (target / TOKENIZER_FILE).write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the file as it stands; CLIPTokenizer would rebuild parts of it
        "bos_token": start,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": config.text.context_length,
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _normalizer(described: dict[str, Any] | None, config: ModelConfig) -> dict[str, Any] | None:
    """The file's own after what it can express of cleaning, and without lower case where the model keeps it.

    Ligatures, full-width letters, broken characters and HTML's are left as they are.
    """
    patterns = _QUOTES + (_FINAL_SIGMA if config.tokenizer.lower_case else ())
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"Regex": pattern}, "content": content} for pattern, content in patterns
    ]
    for each in (described or {}).get("normalizers", [described] if described else []):
        if each["type"] != "Lowercase" or config.tokenizer.lower_case:
            steps.append(each)
    return {"type": "Sequence", "normalizers": steps}


def write_readme(folder: Path, target: Path, library: str, usage: str) -> None:
    """The model's README.md with `usage` at its end; its metadata name the program that opens the export."""
    source = folder / README_FILE
    text = source.read_text(encoding="utf-8") if source.is_file() else f"# {folder.resolve().name}\n"
    text = re.sub(r"\A(---\n(?:.*\n)*?)library_name: .*\n", rf"\g<1>library_name: {library}\n", text)
    (target / README_FILE).write_text(text.rstrip("\n") + "\n" + usage, encoding="utf-8")


def tokenizer_of(model: CloobModel) -> Tokenizer:
    """The tokenizer that a model was opened with."""
    from cloob_cli.data.tokenizer import Tokenizer

    assert isinstance(model.tokenize, Tokenizer)  # open_model brings it
    return model.tokenize
