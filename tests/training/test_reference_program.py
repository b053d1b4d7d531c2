"""Training steps against the rules of the reference program, ml-jku/cloob, written down once more from its behavior.

Both sides start from equal weights and see equal batches in float64. The towers are the same code (their agreement
with the reference's is tested elsewhere); loss, exchange between cards, optimizer, groups and learning rate are not.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from margins import close
from tiny_run import tiny_recipe

from cloob_cli import assets
from cloob_cli.core.model import CloobModel
from cloob_cli.data.batch import PairBatch
from cloob_cli.data.preprocess import normalize
from cloob_cli.recipe import Recipe, load_recipe
from cloob_cli.training.new_model import build_model, model_config
from cloob_cli.training.processes import start_accelerator, start_processes
from cloob_cli.training.step import TrainingStep

STEPS, WARMUP, TOTAL, CYCLES = 5, 2, 12, 5  # steps 2 and 4 begin a cycle, step 3 is in the middle of one
PAIRS, SIZE, INV_TAU, BETA = 16, 64, 30.0, 8.0
LEARNING_RATE, DECAY, BETA1, BETA2, EPSILON = 1e-3, 0.1, 0.9, 0.999, 1e-8

TOWERS = {
    "resnet": {"kind": "resnet", "image_size": SIZE, "width": 8, "layers": [1, 1, 1, 1]},
    "vit": {"kind": "vit", "image_size": SIZE, "patch_size": 16, "width": 16, "layers": 2, "heads": 2},
}


class ReferenceProgram:
    """The step of the reference program on `cards` cards, each with an equal contiguous part of the batch."""

    def __init__(self, model: CloobModel, cards: int) -> None:
        self.model, self.cards = model, cards
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        kept = ("bn", "ln", "bias", "logit_scale")
        self.parameters = [(p, 0.0 if any(k in name for k in kept) else DECAY) for name, p in trained]
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p, _ in self.parameters]

    def step(self, number: int, pixels: torch.Tensor, tokens: torch.Tensor) -> float:
        loss = self.gradients(pixels, tokens)
        rate = LEARNING_RATE * self.factor(number)
        for (parameter, decay), (first, second) in zip(self.parameters, self.moments, strict=True):
            gradient = parameter.grad
            parameter.data *= 1 - rate * decay
            first += (1 - BETA1) * (gradient - first)
            second += (1 - BETA2) * (gradient * gradient - second)
            mean, square = first / (1 - BETA1 ** (number + 1)), second / (1 - BETA2 ** (number + 1))
            parameter.data -= rate * mean / (square.sqrt() + EPSILON)
        return loss

    def factor(self, number: int) -> float:
        """Of the learning rate, as LambdaLR has it in its step `number`, from 0."""
        if number < WARMUP:
            return number / WARMUP
        progress = (number - WARMUP) / (TOTAL - WARMUP)
        return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (CYCLES * progress % 1)))

    def gradients(self, pixels: torch.Tensor, tokens: torch.Tensor) -> float:
        """Each card has its own loss of all embeddings, of which only its own carry a gradient; DDP takes the mean."""
        embedded = [self.model(*part) for part in zip(pixels.chunk(self.cards), tokens.chunk(self.cards), strict=True)]
        losses = []
        for card in range(self.cards):
            order = [card, *(other for other in range(self.cards) if other != card)]
            images, texts = (
                torch.cat([embedded[n][tower] if n == card else embedded[n][tower].detach() for n in order])
                for tower in (0, 1)
            )
            losses.append(self.loss(images, texts))
        self.model.zero_grad()
        (sum(losses) / self.cards).backward()
        return float(losses[0].detach())

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        def retrieved(states: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
            patterns = (BETA * states @ stored.T).softmax(dim=1) @ stored
            return patterns / patterns.norm(dim=1, keepdim=True)

        def infoloob(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            scores = INV_TAU * a @ b.T
            negatives = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -1000.0).logsumexp(dim=1)
            return (negatives - scores.diagonal()).mean() / INV_TAU

        return infoloob(retrieved(x, x), retrieved(y, x)) + infoloob(retrieved(y, y), retrieved(x, y))


def our_recipe(tower: str, cards: int) -> Recipe:
    return tiny_recipe(
        "pairs",
        model={
            "embed_dim": 16,
            "vision": TOWERS[tower],
            "text": {"context_length": 8, "width": 16, "layers": 2, "heads": 2},
        },
        objective={"inv_tau": INV_TAU, "scale_hopfield": BETA},
        optimizer={
            "learning_rate": LEARNING_RATE, "weight_decay": DECAY, "beta1": BETA1, "beta2": BETA2,
            "epsilon": EPSILON * INV_TAU / 2 * cards, "gradient_clip": 0, "decay": "names",
            "schedule": "cosine_restarts", "cycles": CYCLES, "warmup_steps": WARMUP, "warmup_from_zero": True,
        },
        train={"steps": TOTAL, "batch_size": PAIRS, "micro_batch_size": PAIRS // cards, "precision": "fp32"},
    )  # fmt: skip


def batches() -> list[PairBatch]:
    numbers = torch.Generator().manual_seed(11)
    made = []
    for _ in range(STEPS):
        pixels = torch.randint(0, 256, (PAIRS, 3, SIZE, SIZE), generator=numbers, dtype=torch.uint8)
        tokens = torch.randint(1, 90, (PAIRS, 8), generator=numbers)
        tokens[:, -1] = 99  # the end token has the highest id
        made.append(PairBatch(pixels, tokens[:, None], torch.arange(PAIRS), torch.arange(PAIRS)[:, None]))
    return made


@pytest.mark.numeric
@pytest.mark.parametrize("cards", [1, 4])
@pytest.mark.parametrize("tower", TOWERS)
def test_five_steps_equal_the_reference_programs(tower: str, cards: int) -> None:
    """Equal to 1e-10 in float64, where a step moves a weight by up to 1e-3.

    The bound leaves room for rounding alone: float64 rounds a gradient of these networks to about 1e-13 of its size,
    which moves a weight by 1e-16; five steps through BatchNorm over few values enlarge that. Measured: 3e-12 at most.
    """
    recipe = our_recipe(tower, cards)
    device = torch.device("cpu")
    model = build_model(recipe, model_config(recipe, 100), device).double()
    reference = ReferenceProgram(copy.deepcopy(model), cards)
    start = copy.deepcopy(model.state_dict())
    start_processes(device)  # whatever an earlier test has left of Accelerate's state goes
    ours = TrainingStep(
        start_accelerator(device, "fp32"), model, recipe.objective, recipe.optimizer, recipe.train,
        precision="fp32", steps=TOTAL, local_batch_size=PAIRS, seed=0,
    )  # fmt: skip
    for number, batch in enumerate(batches()):
        expected = reference.step(number, normalize(batch.pixels, model.config.preprocess), batch.tokens[:, 0])
        loss, _ = ours(batch, number)
        close(float(loss) * 2 / INV_TAU, expected, "float64 through five steps", atol=1e-10)
        close(ours.learning_rate(number), LEARNING_RATE * reference.factor(number), "float64", atol=1e-15)
    others = dict(reference.model.named_parameters())
    for name, parameter in model.named_parameters():
        close(parameter, others[name], "float64 through five steps", atol=1e-10)
        moves = parameter.requires_grad and "k_proj.bias" not in name  # attention does not depend on a key's bias
        assert ((parameter - start[name]).abs().max() > 1e-4) == moves, name


@pytest.mark.numeric
def test_the_recipe_follows_the_reference_programs_rules() -> None:
    """The steps above are those of recipes/cc3m-rn50.toml, with smaller towers and fewer steps."""
    recipe = load_recipe(assets.find_recipe("cc3m-rn50"))
    ours = our_recipe("resnet", cards=4)
    same = ("learning_rate", "weight_decay", "beta1", "beta2", "gradient_clip", "decay", "schedule", "warmup_from_zero")
    assert [getattr(recipe.optimizer, key) for key in same] == [getattr(ours.optimizer, key) for key in same]
    close(recipe.optimizer.epsilon, ours.optimizer.epsilon, "written with nine digits", rtol=1e-6)
    assert (recipe.objective.inv_tau, recipe.objective.scale_hopfield) == (INV_TAU, BETA)
    assert recipe.objective.learn_inv_tau is False
    assert recipe.train.batch_size == 4 * 128
    assert recipe.train.micro_batch_size == 128  # what a card's BatchNorm saw
    assert recipe.augment.crop_scale == (0.9, 1.0)
    close(recipe.augment.crop_ratio, (3 / 4, 4 / 3), "written with seven digits", rtol=1e-6)
