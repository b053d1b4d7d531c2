"""Measure rejection scores, calibration and few examples on labeled data sets: the tables of docs/answers.md.

    python scripts/measure_answers.py EVAL [--model NAME] [--cache FOLDER]

EVAL is a folder of data sets in the layout of CLIP_benchmark's webdatasets. With --cache the embeddings are kept there
and used again. Needs scikit-learn for the linear probe. Prints Markdown.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import cloob_cli
from cloob_cli.core import calibration, few_shot, rejection
from cloob_cli.core.model import CloobModel
from cloob_cli.data.classification import open_classification_set
from cloob_cli.data.preprocess import Preprocess
from cloob_cli.inference.calibration import crossed_error
from cloob_cli.inference.classify import encode_labels
from cloob_cli.inference.encoding import encode_images, prepare_for_inference
from cloob_cli.inference.labels import Label
from cloob_cli.inference.scoring import ExampleScorer

MOST = 400  # images of a set that are scored
FAR = ("noise", "mnist", "flags_circle", "emoji_emojione", "icons_iconoir")
SHOTS = (1, 2, 4, 8, 16)
DRAWS = 5


@dataclass
class Set:
    """A data set as embeddings: images unit-norm [N, D] with labels int64 [N], and class texts unit-norm [C, D]."""

    images: Tensor
    labels: Tensor
    texts: Tensor
    classes: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("eval", type=Path)
    parser.add_argument("--model", default="cloob-xs-pictograms")
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    model = prepare_for_inference(cloob_cli.load(arguments.model, device="cpu"))
    folders = sorted(path for path in arguments.eval.iterdir() if (path / "classnames.txt").is_file())
    sets = {folder.name: embedded(model, folder, arguments.cache) for folder in folders}
    inv_tau = model.config.inv_tau
    print_rejection(sets, noise(model), inv_tau)
    print_thresholds(sets, inv_tau)
    print_calibration(sets, inv_tau)
    print_few_shot(sets, inv_tau)


def embedded(model: CloobModel, folder: Path, cache: Path | None) -> Set:
    """Embed a data set, or read it from the cache."""
    kept = cache / f"{folder.name}.npz" if cache else None
    data = open_classification_set(folder)
    if kept is not None and kept.exists():
        arrays = np.load(kept)
        images, texts = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["texts"])
    else:
        preprocess = Preprocess(model.config.vision.image_size, model.config.preprocess)
        crops = (preprocess.crop(data.image(number)) for number in range(len(data)))
        images = torch.cat([encode_images(model, torch.from_numpy(np.stack(part))) for part in batched(crops)])
        texts = encode_labels(model, [Label(name, (name,)) for name in data.classes], data.templates)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, images=images.numpy(), texts=texts.numpy())
    return Set(images, torch.tensor(data.labels), texts, data.classes)


def batched(crops: Iterator[np.ndarray], size: int = 64) -> Iterator[list[np.ndarray]]:
    part: list[np.ndarray] = []
    for crop in crops:
        part.append(crop)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def noise(model: CloobModel) -> Tensor:
    """Embeddings of uniform noise."""
    size = model.config.vision.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (MOST, size, size, 3), dtype=np.uint8)
    return torch.cat([encode_images(model, torch.from_numpy(pixels[i : i + 64])) for i in range(0, MOST, 64)])


def some(count: int, most: int, seed: int = 0) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most]


def scores(queries: Tensor, texts: Tensor, inv_tau: float, reference: Tensor | None) -> dict[str, Tensor]:
    """Every rejection score of some images."""
    found = {
        "softmax": rejection.softmax_score(inv_tau * queries @ texts.T),
        "cosine": rejection.cosine_score(queries, texts),
        "energy": rejection.energy_score(queries, texts, inv_tau),
        "empty pattern": rejection.empty_pattern_share(queries, texts, inv_tau),
        "empty pattern, one step": rejection.empty_pattern_share(queries, texts, inv_tau, steps=1),
    }
    if reference is not None:
        found["energy, reference images"] = rejection.energy_score(queries, reference, inv_tau)
    return found


def print_rejection(sets: dict[str, Set], noisy: Tensor, inv_tau: float) -> None:
    """Known labels against foreign sets: known images are those of the set that the labels are of."""
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}
    detail: list[str] = []
    for name, known in sets.items():
        at = some(len(known.images), 2 * MOST)
        half = len(at) // 2
        queries, reference = known.images[at[:half]], known.images[at[half:]]
        base = scores(queries, known.texts, inv_tau, reference)
        for other in FAR:
            if other == name:
                continue
            images = noisy if other == "noise" else foreign_images(sets[other], known)
            compare(
                rows,
                "noise" if other == "noise" else "other sets",
                base,
                scores(images, known.texts, inv_tau, reference),
            )
            one = {
                score: rows[score]["noise" if other == "noise" else "other sets"][-1]
                for score in ("softmax", "cosine", "energy")
            }
            detail.append(f"| {name} | {other} | " + " | ".join(f"{a:.2f}" for a, _ in one.values()) + " |")
        for seed in range(3):
            chosen = some(len(known.texts), len(known.texts) // 2, seed)
            is_known = torch.isin(known.labels[at], chosen)
            found = scores(known.images[at], known.texts[chosen], inv_tau, None)
            compare(
                rows,
                "other half",
                {k: v[is_known] for k, v in found.items()},
                {k: v[~is_known] for k, v in found.items()},
            )
    kinds = ["noise", "other sets", "other half"]
    print("| score | " + " | ".join(f"{kind}: AUROC | FPR95" for kind in kinds) + " | mean AUROC |")
    print("|" + "---|" * (2 * len(kinds) + 2))
    for score, found in rows.items():
        cells, areas = [], []
        for kind in kinds:
            values = found.get(kind, [])
            area, passed = (sum(v[i] for v in values) / len(values) if values else math.nan for i in (0, 1))
            cells += [f"{area:.3f}", f"{passed:.3f}"] if values else ["", ""]
            areas += [area] if values else []
        print(f"| {score} | {' | '.join(cells)} | {sum(areas) / len(areas):.3f} |")
    print("\n| labels of | foreign images | softmax | cosine | energy |\n|---|---|---|---|---|")
    print("\n".join(detail), "\n")


def foreign_images(other: Set, known: Set) -> Tensor:
    """Images of another set whose class is no label."""
    names = {name.casefold() for name in known.classes}
    foreign = torch.tensor([other.classes[label].casefold() not in names for label in other.labels.tolist()])
    images = other.images[foreign]
    return images[some(len(images), MOST)]


def compare(
    rows: dict[str, dict[str, list[tuple[float, float]]]],
    kind: str,
    known: dict[str, Tensor],
    foreign: dict[str, Tensor],
) -> None:
    for score in known:
        measured = (
            calibration.auroc(known[score], foreign[score]),
            calibration.false_known_rate(known[score], foreign[score]),
        )
        rows.setdefault(score, {}).setdefault(kind, []).append(measured)


def print_thresholds(sets: dict[str, Set], inv_tau: float) -> None:
    """The thresholds that keep 95 % of known images, and the level of a label by itself, with 50 labels of each set."""
    print("| set | softmax | cosine | energy | empty pattern | level of a label |\n|---|---|---|---|---|---|")
    for name, data in sets.items():
        chosen = some(len(data.texts), 50)
        keep = torch.isin(data.labels, chosen)
        texts, images = data.texts[chosen], data.images[keep]
        numbers = (data.labels[keep][:, None] == chosen[None]).int().argmax(1)
        found = scores(images, texts, inv_tau, None)
        values = [calibration.keeping_threshold(found[s]) for s in ("softmax", "cosine", "energy", "empty pattern")]
        values.append(calibration.label_level(images @ texts.T, numbers))
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")
    print()


def print_calibration(sets: dict[str, Set], inv_tau: float) -> None:
    print("| set | images | labels | accuracy | error before | after | temperature | in a set of 95 % | labels in it |")
    print("|" + "---|" * 9)
    for name, data in sets.items():
        order = some(len(data.labels), len(data.labels))
        logits, labels = inv_tau * data.images[order] @ data.texts.T, data.labels[order]
        before = calibration.expected_calibration_error(torch.softmax(logits, 1), labels)
        fitted = calibration.fit_temperature(logits[::2], labels[::2])
        chances = torch.softmax(logits / fitted, 1)
        right = chances.gather(1, labels[:, None])[:, 0]
        level = calibration.conformal_level(right[::2], 0.95)
        held = (right[1::2] >= level).float().mean().item()
        size = (chances[1::2] >= level).sum(1).float().mean().item()
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        counts = f"{len(labels)} | {len(data.texts)} | {100 * accuracy:.1f} %"
        errors = f"{before:.3f} | {crossed_error(logits, labels):.3f} | {fitted:.2f}"
        print(f"| {name} | {counts} | {errors} | {100 * held:.1f} % | {size:.0f} |")
    print()


def print_few_shot(sets: dict[str, Set], inv_tau: float) -> None:
    """Accuracy with 1 to 16 examples of each label, the mean of some draws, on all other images."""
    for name, data in sets.items():
        if torch.bincount(data.labels).min() <= max(SHOTS):
            continue
        print(f"{name}: accuracy in percent, mean of {DRAWS} draws\n")
        print("| examples a label | " + " | ".join(map(str, SHOTS)) + " |\n|" + "---|" * (len(SHOTS) + 1))
        table: dict[str, list[float]] = {}
        for shots in SHOTS:
            sums: dict[str, float] = {}
            for seed in range(DRAWS):
                order = some(len(data.labels), len(data.labels), seed)
                picked = torch.cat([order[data.labels[order] == c][:shots] for c in range(len(data.texts))])
                rest = torch.ones(len(data.labels), dtype=torch.bool)
                rest[picked] = False
                examples, labels = data.images[picked], data.labels[picked]
                for method, classify in methods(data.texts, examples, labels, inv_tau).items():
                    right = (classify(data.images[rest]) == data.labels[rest]).double().mean().item()
                    sums[method] = sums.get(method, 0.0) + 100 * right / DRAWS
            for method, value in sums.items():
                table.setdefault(method, []).append(value)
        for method, values in table.items():
            print(f"| {method} | {' | '.join(f'{value:.1f}' for value in values)} |")
        print()


def methods(texts: Tensor, examples: Tensor, labels: Tensor, inv_tau: float) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every way of classifying by examples: unit-norm [B, D] -> int64 [B]."""
    scorer = ExampleScorer(texts, examples, labels)
    alpha, sharpness = choose_tip_adapter(texts, examples, labels, inv_tau)
    count = len(texts)
    means = torch.nn.functional.normalize(torch.stack([examples[labels == c].mean(0) for c in range(count)]), dim=1)
    probe = linear_probe(examples, labels)
    return {
        "texts alone (zero-shot)": lambda x: (x @ texts.T).argmax(1),
        "nearest neighbor": lambda x: labels[(x @ examples.T).argmax(1)],
        "class mean": lambda x: (x @ means.T).argmax(1),
        "Tip-Adapter's form, alpha 1, sharpness 5.5": lambda x: few_shot.tip_adapter_logits(
            x, texts, examples, labels, inv_tau, 1.0, 5.5
        ).argmax(1),
        "Tip-Adapter's form, chosen by leave-one-out": lambda x: few_shot.tip_adapter_logits(
            x, texts, examples, labels, inv_tau, alpha, sharpness
        ).argmax(1),
        "linear probe": probe,
        "Hopfield retrieval (`--examples`)": lambda x: scorer(x).logits.argmax(1),
    }


def choose_tip_adapter(texts: Tensor, examples: Tensor, labels: Tensor, inv_tau: float) -> tuple[float, float]:
    """Alpha and sharpness of the least cross-entropy, each example left out of its own cache."""
    onehot = torch.nn.functional.one_hot(labels, len(texts))
    best, least = (1.0, 5.5), math.inf
    for alpha in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0):
        for sharpness in (1.0, 3.0, 5.5, 10.0, 20.0, 40.0):
            logits = few_shot.tip_adapter_logits(examples, texts, examples, labels, inv_tau, alpha, sharpness)
            loss = torch.nn.functional.cross_entropy(logits - alpha * onehot, labels).item()
            if loss < least:
                best, least = (alpha, sharpness), loss
    return best


def linear_probe(examples: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Logistic regression on unit-norm embeddings, C = 10."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=10.0, max_iter=2000).fit(examples.numpy(), labels.numpy())
    return lambda x: torch.from_numpy(fitted.predict(x.numpy()))


if __name__ == "__main__":
    main()
