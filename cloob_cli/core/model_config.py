"""One description for every model that cloob knows: `ModelConfig`, the contents of a folder's `config.json`.

It imports no torch, so that the zoo can be listed and shown without it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cloob_cli.strict_model import StrictModel

FORMAT_VERSION = 1

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]

CLIP_VOCAB_SIZE = 49408

# CLIP's own statistics of its training images (openai/CLIP, clip.py), used by every released CLOOB model too.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class AdapterConfig(StrictModel):
    """A head behind a tower: its features plus what a small network makes of them. A new one adds nothing at first."""

    kind: Literal["mlp"] = Field(default="mlp", description="a norm and linear layers with GELU between them")
    layers: int = Field(default=2, gt=0, description="linear layers")
    width: int | None = Field(default=None, gt=0, description="of the hidden ones; left out: four times the embedding")


class VisionConfig(StrictModel):
    """The image tower.

    `kind = "resnet"` is CLIP's modified ResNet (three-convolution stem, blur-pooled strides, attention pooling),
    with `layers` a list of four block counts. `kind = "vit"` is a vision transformer with a class token; CLIP's has
    `norm_pre` and `norm_post`, crowsonkb's has neither and a bias in its projection.
    """

    kind: Literal["resnet", "vit"] = Field(description="a ResNet or a vision transformer")
    image_size: int = Field(gt=0, description="side of the square input, pixels")
    width: int = Field(gt=0, description="channels of a token, or of the ResNet's first stage")
    layers: int | list[int] = Field(description="blocks; four counts for a ResNet")
    heads: int | None = Field(
        default=None, gt=0, description="left out: CLIP's rule, width/64 (ViT) or width/2 (ResNet)"
    )
    patch_size: int | None = Field(default=None, gt=0, description="side of a ViT's patch, pixels")
    stem: Literal["patch", "conv"] = Field(
        default="patch", description="from patch to token in a ViT: one linear map, or 3x3 convolutions"
    )
    mlp_ratio: float = Field(default=4.0, gt=0, description="width of a block's hidden layer by the tower's")
    activation: Activation = Field(default="gelu", description="gelu_tanh is jax's, quick_gelu is the original CLIP's")
    norm_pre: bool = Field(default=True, description="a norm before the first block")
    norm_post: bool = Field(default=True, description="a norm after the last block")
    norm_epsilon: float = Field(default=1e-5, gt=0, description="of every norm")
    patch_bias: bool = Field(default=False, description="a bias in a ViT's patch embedding")
    projection_bias: bool = Field(default=False, description="a bias in the projection to the embedding")
    adapter: AdapterConfig | None = Field(default=None, description="a head behind the tower; left out: none")

    @model_validator(mode="after")
    def _consistent(self) -> VisionConfig:
        if self.kind == "resnet":
            if not isinstance(self.layers, list) or len(self.layers) != 4 or min(self.layers) < 1:
                raise ValueError("a resnet's layers are four block counts, like [3, 4, 6, 3]")
            if self.patch_size is not None:
                raise ValueError("a resnet has no patch_size")
            if self.stem != "patch":
                raise ValueError("stem is a vit's; a resnet has its own of three convolutions")
            if self.image_size % 32:
                raise ValueError("a resnet's image_size must be a multiple of 32")
        else:
            if not isinstance(self.layers, int) or self.layers < 1:
                raise ValueError("a vit's layers is one number of at least 1")
            if self.patch_size is None:
                raise ValueError("a vit needs a patch_size")
            if self.image_size % self.patch_size:
                raise ValueError("image_size must be a multiple of patch_size")
            if self.width % self.head_count:
                raise ValueError("width must be a multiple of heads")
            if self.stem == "conv" and (
                self.patch_size & (self.patch_size - 1) or not 1 < self.patch_size <= self.width
            ):
                raise ValueError("a stem of convolutions halves the image, so patch_size is a power of two")
        return self

    @property
    def head_count(self) -> int:
        """Attention heads: of the pooling (ResNet) or of every block (ViT)."""
        if self.heads is not None:
            return self.heads
        return max(1, self.width * 32 // 64 if self.kind == "resnet" else self.width // 64)


class TextConfig(StrictModel):
    """The text tower, a transformer.

    `causal` with `pooling = "end"` is CLIP's. crowsonkb's is not causal, pools the first token and has
    `padding = "queries"`: padded queries attend to everything alike, valid ones attend to padding too. A RoBERTa has
    `post_norm`, `norm_embedding`, `padding = "keys"` (nobody attends to padding) and pools the first token.
    """

    context_length: int = Field(default=77, gt=1, description="tokens in a text, start and end included")
    vocab_size: int = Field(gt=0, description="entries of the vocabulary")
    width: int = Field(gt=0, description="channels of a token")
    layers: int = Field(gt=0, description="blocks")
    heads: int = Field(gt=0, description="attention heads of a block")
    mlp_ratio: float = Field(default=4.0, gt=0, description="width of a block's hidden layer by the tower's")
    activation: Activation = Field(default="gelu", description="gelu_tanh is jax's, quick_gelu is the original CLIP's")
    causal: bool = Field(default=True, description="a token attends only to itself and to those before it")
    pooling: Literal["end", "first"] = Field(default="end", description="the token that the embedding is read from")
    padding: Literal["ignored", "queries", "keys"] = Field(
        default="ignored", description="the side of attention that is masked after the end token"
    )
    pad_id: int | None = Field(default=None, ge=0, description="id of padding; none: all that follows the end token")
    post_norm: bool = Field(default=False, description="norms after attention and MLP instead of before them")
    norm_embedding: bool = Field(default=False, description="a norm of the sum of embedding and position")
    norm_final: bool = Field(default=True, description="a norm after the last block")
    norm_epsilon: float = Field(default=1e-5, gt=0, description="of every norm")
    projection_bias: bool = Field(default=False, description="a bias in the projection to the embedding")
    adapter: AdapterConfig | None = Field(default=None, description="a head behind the tower; left out: none")

    @model_validator(mode="after")
    def _consistent(self) -> TextConfig:
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        if self.causal and self.padding != "ignored":
            raise ValueError("a causal tower has no padding mask: its padding is 'ignored'")
        return self


class PreprocessConfig(StrictModel):
    """The steps from an image to a tensor: resize of the short side, center crop, scale to [0, 1], normalize."""

    mean: tuple[float, float, float] = Field(default=CLIP_MEAN, description="of the channels, subtracted")
    std: tuple[float, float, float] = Field(default=CLIP_STD, description="of the channels, divided by")
    resize: Literal["shortest", "squash"] = Field(default="shortest", description="squash: both sides, no crop")
    interpolation: Literal["bicubic", "bilinear"] = Field(default="bicubic", description="of the resize")


class TokenizerConfig(StrictModel):
    """The steps from a text to ids. The vocabulary itself is the folder's `tokenizer.json`.

    `kind`: "clip" is CLIP's byte-level BPE, "bpe" one of the same form trained on a recipe's captions, "roberta"
    a sentence-piece vocabulary whose first and last ids the upstream tokenizer adds.
    `truncation`: "end" keeps the end token as the last id of a text that is too long; "mljku" drops it, as the
    reference program does.
    """

    kind: Literal["clip", "bpe", "roberta"] = "clip"
    start_token: str = "<start_of_text>"
    end_token: str = "<end_of_text>"
    pad_id: int = 0
    lower_case: bool = True
    truncation: Literal["end", "mljku"] = "end"


class ModelConfig(StrictModel):
    """Everything that is needed to rebuild a model and to use it as it was trained."""

    format_version: Literal[1] = 1
    name: str = ""
    embed_dim: int = Field(gt=0)
    vision: VisionConfig
    text: TextConfig
    preprocess: PreprocessConfig = PreprocessConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    inv_tau: float = Field(default=30.0, gt=0, description="inverse temperature of the loss and of probabilities")
    scale_hopfield: float | None = Field(default=None, gt=0, description="beta of the retrieval; none: not used")
    templates: list[str] = Field(default_factory=list, description="prompt templates that suit it, {c} is the class")
    source: dict[str, Any] = Field(default_factory=dict, description="where the weights come from")
    recipe: dict[str, Any] | None = Field(default=None, description="the recipe that trained it")
    metrics: dict[str, Any] = Field(default_factory=dict, description="scores measured at the end of training")


def _clip(embed_dim: int, text_width: int, vision: dict[str, Any], activation: Activation) -> dict[str, Any]:
    text = {"vocab_size": CLIP_VOCAB_SIZE, "width": text_width, "layers": 12, "heads": text_width // 64}
    return {
        "embed_dim": embed_dim,
        "vision": vision | {"activation": activation},
        "text": text | {"activation": activation},
    }


# The architectures of the CLIP paper by their open_clip names, with erf GELU as open_clip has it ("-quickgelu"
# is the original activation, with which the ml-jku checkpoints were trained).
ARCHITECTURES: dict[str, dict[str, Any]] = {}
for _suffix, _activation in (("", "gelu"), ("-quickgelu", "quick_gelu")):
    _resnet = {"kind": "resnet", "image_size": 224, "width": 64, "layers": [3, 4, 6, 3]}
    _resnet_x4 = {"kind": "resnet", "image_size": 288, "width": 80, "layers": [4, 6, 10, 6]}
    _vit = {"kind": "vit", "image_size": 224, "width": 768, "layers": 12}
    ARCHITECTURES |= {
        f"RN50{_suffix}": _clip(1024, 512, _resnet, _activation),  # type: ignore[arg-type]
        f"RN50x4{_suffix}": _clip(640, 640, _resnet_x4, _activation),  # type: ignore[arg-type]
        f"ViT-B-32{_suffix}": _clip(512, 512, _vit | {"patch_size": 32}, _activation),  # type: ignore[arg-type]
        f"ViT-B-16{_suffix}": _clip(512, 512, _vit | {"patch_size": 16}, _activation),  # type: ignore[arg-type]
    }
