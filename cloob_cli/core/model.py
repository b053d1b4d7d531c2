"""`CloobModel`: an image tower and a text tower that embed into one space.

Parameter names are those of open_clip's `CLIP` class (`visual.*`, `transformer.*`, `token_embedding.weight`,
`positional_embedding`, `ln_final.*`, `text_projection`, `logit_scale`), so that an export is a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cloob_cli.core.adapter import Adapter
from cloob_cli.core.initialization import initialize_attention, initialize_image_tower, initialize_text_tower
from cloob_cli.core.model_config import ModelConfig, TextConfig
from cloob_cli.core.resnet import ModifiedResNet
from cloob_cli.core.token_rows import end_of_longest
from cloob_cli.core.transformer import Transformer, VisionTransformer, project
from cloob_cli.errors import ModelFolderError


class CloobModel(nn.Module):
    """A contrastive image-text model.

    Construction leaves the weights unset: `build` initializes a new model, `with_weights` takes stored ones.

    Attributes:
        config: everything that describes the model.
        preprocess: image -> float32 [3, H, W]; None until a loaded model folder brings it.
        tokenize: texts -> int64 [B, context]; None until a loaded model folder brings it.
        logit_scale: the parameter log(inv_tau), a scalar (open_clip's name).
        cuts_tokens: drop, on a CPU, the columns behind a batch's longest text. Off where every new length costs
            something, as with a compiled tower.
    """

    preprocess: Callable[..., Tensor] | None
    tokenize: Callable[..., Tensor] | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocess = None
        self.tokenize = None
        self.cuts_tokens = True
        self._in_evaluation: tuple[nn.Module, ...] = ()
        self.visual: ModifiedResNet | VisionTransformer
        if config.vision.kind == "resnet":
            self.visual = ModifiedResNet(config.vision, config.embed_dim)
        else:
            self.visual = VisionTransformer(config.vision, config.embed_dim)
        self._add_text_tower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.empty(()))
        vision, text = config.vision.adapter, config.text.adapter
        self.visual_adapter = Adapter(vision, config.embed_dim) if vision else nn.Identity()
        self.text_adapter = Adapter(text, config.embed_dim) if text else nn.Identity()

    def _add_text_tower(self, text: TextConfig, embed_dim: int) -> None:
        # open_clip keeps this tower's parts at the top level, hence not a module of its own.
        # Not nn.Embedding(...): models are opened on the meta device, where its normal_() imports torch._dynamo, a
        # second of every command's start.
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(text.vocab_size, text.width), freeze=False)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.transformer = Transformer(
            text.width,
            text.layers,
            text.heads,
            text.mlp_ratio,
            text.activation,
            text.norm_epsilon,
            post_norm=text.post_norm,
        )
        self.ln_embedding = nn.LayerNorm(text.width, eps=text.norm_epsilon) if text.norm_embedding else nn.Identity()
        self.ln_final = nn.LayerNorm(text.width, eps=text.norm_epsilon) if text.norm_final else nn.Identity()
        self.text_projection: nn.Parameter | nn.Linear
        if text.projection_bias:
            self.text_projection = nn.Linear(text.width, embed_dim)
        else:
            self.text_projection = nn.Parameter(torch.empty(text.width, embed_dim))

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw every weight from torch's current random state as CLIP does; layers that torch initializes are kept."""
        initialize_attention(self)
        initialize_image_tower(self.visual)
        initialize_text_tower(self.token_embedding, self.positional_embedding, self.transformer, self.text_projection)
        self.logit_scale.fill_(math.log(self.config.inv_tau))
        for adapter in (self.visual_adapter, self.text_adapter):
            if isinstance(adapter, Adapter):
                adapter.initialize()

    @property
    def inv_tau(self) -> Tensor:
        """The inverse temperature, a scalar tensor that gradients flow through."""
        return self.logit_scale.exp()

    def image_features(self, pixels: Tensor) -> Tensor:
        """Raw image features [B, D], before L2 normalization, of normalized pixels [B, 3, H, W] (any float dtype), or
        of what `image_trunk` gave for them [B, W].
        """
        if pixels.ndim == 2:
            features: Tensor = self.visual.head(pixels)
        else:
            features = self.visual(pixels.to(self.visual.conv1.weight.dtype))
        adapted: Tensor = self.visual_adapter(features)
        return adapted

    def image_trunk(self, pixels: Tensor) -> Tensor:
        """Features before the projection, [B, W], of normalized pixels [B, 3, H, W]."""
        return self.visual.trunk(pixels.to(self.visual.conv1.weight.dtype))

    def text_features(self, tokens: Tensor) -> Tensor:
        """Raw text features [B, D], before L2 normalization, of token ids int64 [B, context], or of what `text_trunk`
        gave for them, float [B, W].
        """
        trunk = tokens if tokens.is_floating_point() else self.text_trunk(tokens)
        adapted: Tensor = self.text_adapter(project(trunk, self.text_projection))
        return adapted

    def text_trunk(self, tokens: Tensor) -> Tensor:
        """Features before the projection, [B, W], of token ids int64 [B, context]."""
        text = self.config.text
        index: Tensor | int = tokens.argmax(-1) if text.pooling == "end" else 0  # the end token is the highest id
        if text.causal and text.pooling == "end" and self.cuts_tokens and not tokens.is_cuda and not _is_traced():
            # Nothing after the last end token reaches a result. A GPU would have to wait for the number.
            tokens = tokens[:, : end_of_longest(tokens)]
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        valid = None
        if text.padding != "ignored":
            valid = tokens_to_end(tokens, text.vocab_size - 1) if text.pad_id is None else tokens != text.pad_id
        pooled = self.transformer(
            self.ln_embedding(x),
            index,
            causal=text.causal,
            valid_queries=valid if text.padding == "queries" else None,
            valid_keys=valid if text.padding == "keys" else None,
        )
        final: Tensor = self.ln_final(pooled)
        return final

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Image embeddings of unit norm: float32 [B, D] (float64 of a float64 model).

        Args:
            pixels: [B, 3, H, W], normalized as `preprocess` does, H and W the model's image size. At another size
                positions are interpolated, which is good for a model that was trained at it.
        """
        return unit_norm(self.image_features(pixels))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text embeddings of unit norm: float32 [B, D] (float64 of a float64 model).

        Args:
            tokens: int64 [B, context], as `tokenize` gives them.
        """
        return unit_norm(self.text_features(tokens))

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both embeddings of a batch of pairs, [B, D] each. Either input may be what a tower's trunk gave for it."""
        return self.encode_image(pixels), self.encode_text(tokens)

    def stay_in_evaluation(self, modules: Iterable[nn.Module]) -> None:
        """Keep these modules of the model in evaluation mode, whatever mode the model is put into from now on."""
        self._in_evaluation += tuple(modules)
        self.train(self.training)

    def train(self, mode: bool = True) -> CloobModel:
        """Put the model into training mode, but for the modules that stay in evaluation mode."""
        super().train(mode)
        for module in self._in_evaluation:
            module.eval()
        return self

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute every block's activations in the backward pass instead of keeping them (training only).

        Less memory for about a third more computation; gradients and batch-norm statistics stay the same.
        """
        for module in self.modules():
            if isinstance(module, Transformer | ModifiedResNet):
                module.checkpointing = on


def build(config: ModelConfig, seed: int | None = None) -> CloobModel:
    """A new model with CLIP's initialization, on the CPU in float32.

    Args:
        seed: makes the weights a pure function of (config, seed) and leaves torch's random state alone; without
            one the weights are drawn from torch's current random state.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = CloobModel(config)
        model.initialize()
    return model


def with_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> CloobModel:
    """The model that `config` describes with these weights; the tensors are taken as they are, not copied.

    Raises:
        ModelFolderError: a tensor is missing, left over or of another shape.
    """
    with torch.device("meta"):
        model = CloobModel(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    hint = "the weights do not belong to this configuration"
    for name in sorted(expected.keys() | given.keys()):
        if name not in given:
            raise ModelFolderError(f"the weights lack the tensor '{name}'", hint)
        if name not in expected:
            raise ModelFolderError(f"the weights hold the tensor '{name}', which this architecture does not have", hint)
        if expected[name] != given[name]:
            shapes = f"{list(given[name])} instead of {list(expected[name])}"
            raise ModelFolderError(f"the tensor '{name}' has the shape {shapes}", hint)
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def unit_norm(features: Tensor) -> Tensor:
    """features / |features| along the last axis, in at least float32."""
    at_least_float32 = torch.promote_types(features.dtype, torch.float32)
    return F.normalize(features.to(at_least_float32), dim=-1)


def tokens_to_end(tokens: Tensor, end_id: int) -> Tensor:
    """bool [B, N]: True up to and including the first end token; everywhere where there is none."""
    is_end = (tokens == end_id).long()
    return is_end.cumsum(-1) - is_end == 0


def _is_traced() -> bool:
    # A compiled or exported graph must not depend on the numbers in a batch.
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    traced: Any = tracing or torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return bool(traced)
