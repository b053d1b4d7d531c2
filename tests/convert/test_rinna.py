"""rinna's layout, built at small size from transformers' own classes and a real sentence-piece vocabulary."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from margins import close
from PIL import Image

import cloob_cli
from cloob_cli.checkpoint.folder import save_model
from cloob_cli.convert import convert_checkpoint
from cloob_cli.core.model import unit_norm
from cloob_cli.errors import ConversionError

transformers = pytest.importorskip("transformers", reason="needs the package transformers to compare with")
sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra `transformers`")

SENTENCES = [
    "自転車に乗る人の写真", "屋根の上の二匹の猫", "夜の海と月", "赤い自転車が屋根の下にある", "東京の街の夜景",
    "犬が公園で走っている", "a photo of a red bicycle", "Two CATS on a roof", "寿司とラーメン", "ﾊﾝｶｸ カタカナ",
    "１２３ ＡＢＣ", "雪の積もった山", "子供が海で泳ぐ", "花の咲く庭", "the sea at night",
]  # fmt: skip
TEXTS = [
    *SENTENCES, "", "   空白   が  ある ", "知らない漢字：鬱", "😀 絵文字", "Ａｂｃ　ＤＥＦ", "ﾊﾞﾋﾞﾌﾞ ﾊﾟﾋﾟ", "①②③ ㍿",
    "改行\nと\tタブ", "é è ñ Ü", "とても長い文章です。" * 40, "[MASK] の 猫", "a  b   c",
]  # fmt: skip
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
LONGEST = 77  # the reference tokenizer's max_seq_len; [CLS] comes on top


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the Hub's: config.json, pytorch_model.bin in the names of transformers 4, spiece.model."""
    folder = tmp_path_factory.mktemp("rinna")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, vocab_size=220, model_type="unigram",
        control_symbols=SPECIAL, hard_vocab_limit=False, minloglevel=3, num_threads=1,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    names = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")

    vision, text, image_projection, text_projection = towers(processor(folder))
    config = {
        "model_type": "cloob", "projection_dim": 24, "init_inv_tau": 30.0, "scale_hopfield": 15.0,
        "vision_config": vision.config.to_dict(), "text_config": text.config.to_dict(),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = {f"vision_model.{transformers_4(name)}": tensor for name, tensor in vision.state_dict().items()}
    state |= {f"text_model.{name}": tensor for name, tensor in text.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(512)[None]
    state |= {"visual_projection.weight": image_projection.weight, "text_projection.weight": text_projection.weight}
    torch.save({name: tensor.detach() for name, tensor in state.items()}, folder / "pytorch_model.bin")
    return folder


def processor(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def towers(pieces: sentencepiece.SentencePieceProcessor) -> tuple[torch.nn.Module, ...]:
    torch.manual_seed(0)
    vision = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80, image_size=32,
            patch_size=16, initializer_range=0.2,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    text = transformers.RobertaModel(
        transformers.RobertaConfig(
            vocab_size=pieces.get_piece_size(), hidden_size=40, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=90, type_vocab_size=2, layer_norm_eps=1e-5,
            pad_token_id=1, initializer_range=0.2,  # not the tokenizer's: the mask goes by the tokenizer
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    projections = [torch.nn.Linear(32, 24, bias=False), torch.nn.Linear(40, 24, bias=False)]
    for parameter in [*vision.parameters(), *text.parameters()]:
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases and norms too
    return vision.eval(), text.eval(), *projections


def transformers_4(name: str) -> str:
    """The name of a ViT's tensor in the released checkpoint, which transformers 4 wrote."""
    for new, old in {
        "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }.items():  # fmt: skip
        name = name.replace(new, old)
    return f"encoder.layer.{name.removeprefix('layers.')}" if name.startswith("layers.") else name


def reference_ids(pieces: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """rinnakk/japanese-clip: lower case sign by sign but for special tokens, pieces, cut, padded, [CLS] in front."""
    ids: list[int] = []
    for part in text.replace("[MASK]", "\0[MASK]\0").split("\0"):
        if part == "[MASK]":
            ids.append(pieces.piece_to_id(part))
        else:
            ids += pieces.encode("".join(sign.lower() for sign in part))
    ids = ids[:LONGEST]
    return [pieces.piece_to_id("[CLS]"), *ids] + [pieces.piece_to_id("[PAD]")] * (LONGEST - len(ids))


def test_ids_are_sentencepiece_s(repository: Path) -> None:
    tokenizer = convert_checkpoint(repository).tokenizer
    pieces = processor(repository)
    for text in TEXTS:
        assert tokenizer(text)[0].tolist() == reference_ids(pieces, text), text


@pytest.mark.numeric
def test_embeddings_are_transformers_s(repository: Path, tmp_path: Path) -> None:
    converted = convert_checkpoint(repository, name="rinna")
    assert converted.format == "rinna"
    save_model(tmp_path / "model", converted.model, converted.tokenizer, card_text="")
    model = cloob_cli.load(str(tmp_path / "model"), device="cpu")
    pieces = processor(repository)
    vision, text, image_projection, text_projection = towers(pieces)
    pixels = torch.randn(3, 3, 32, 32)
    ids = torch.tensor([reference_ids(pieces, one) for one in TEXTS])
    with torch.no_grad():
        images = image_projection(vision(pixel_values=pixels).last_hidden_state[:, 0])
        texts = text_projection(
            text(
                input_ids=ids,
                attention_mask=(ids != pieces.piece_to_id("[PAD]")).long(),
                position_ids=torch.arange(ids.shape[1])[None],
            ).last_hidden_state[:, 0]
        )
    reason = "unit rows in float32 through a dozen layers"
    close(model.encode_image(pixels), unit_norm(images), reason, atol=1e-5)
    close(model.encode_text(model.tokenize(TEXTS)), unit_norm(texts), reason, atol=1e-5)
    assert model.config.inv_tau == 30.0
    assert model.config.scale_hopfield == 15.0


def test_images_are_resized_bilinearly_as_upstream(repository: Path) -> None:
    preprocess = convert_checkpoint(repository).config.preprocess
    assert preprocess.interpolation == "bilinear"
    image = Image.effect_noise((50, 64), 90).convert("RGB")
    from cloob_cli.data.preprocess import Preprocess

    expected = image.resize((32, 40), Image.Resampling.BILINEAR).crop((0, 4, 32, 36))
    assert Preprocess(32, preprocess).crop(image).tobytes() == expected.tobytes()


def test_everything_is_used_or_named(repository: Path) -> None:
    converted = convert_checkpoint(repository)
    assert sorted(converted.ignored) == [
        "text_model.embeddings.position_embeddings.weight[78:]",
        "text_model.embeddings.position_ids",
        "text_model.embeddings.token_type_embeddings.weight[1:]",
    ]


def test_the_names_of_transformers_5_and_safetensors(repository: Path, tmp_path: Path) -> None:
    """The same repository, written again by a newer program."""
    from safetensors.torch import save_file

    state = torch.load(repository / "pytorch_model.bin", weights_only=True)
    vision = towers(processor(repository))[0].state_dict()
    newer = {name: tensor for name, tensor in state.items() if not name.startswith("vision_model.")}
    newer |= {f"vision_model.{name}": tensor for name, tensor in vision.items()}
    save_file({name: tensor.contiguous() for name, tensor in newer.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((repository / "config.json").read_bytes())
    ours = convert_checkpoint(tmp_path, tokenizer=repository).model.state_dict()
    for name, tensor in convert_checkpoint(repository).model.state_dict().items():
        assert torch.equal(ours[name], tensor), name


def test_what_is_missing_is_said(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes((repository / "pytorch_model.bin").read_bytes())
    with pytest.raises(ConversionError, match=r"config\.json"):
        convert_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes((repository / "config.json").read_bytes())
    with pytest.raises(ConversionError, match=r"spiece\.model: no such file"):
        convert_checkpoint(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(ConversionError, match="not a sentence-piece model"):
        convert_checkpoint(tmp_path)
    described = json.loads((repository / "config.json").read_text(encoding="utf-8"))
    described["vision_config"]["model_type"] = "swin"
    (tmp_path / "config.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ConversionError, match="model_type"):
        convert_checkpoint(tmp_path)


def test_loading_needs_neither_transformers_nor_sentencepiece(repository: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    converted = convert_checkpoint(repository)
    save_model(tmp_path / "model", converted.model, converted.tokenizer, card_text="")
    program = (
        "import sys\nsys.modules['transformers'] = sys.modules['sentencepiece'] = None\nimport cloob_cli\n"
        f"m = cloob_cli.load({str(tmp_path / 'model')!r}, device='cpu')\nprint(m.encode_text(m.tokenize(['猫'])).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "torch.Size([1, 24])", done.stderr
