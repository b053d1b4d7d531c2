"""Examples at the end of every `--help`: command lines that can be copied."""

from __future__ import annotations

import typer

_EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "cloob classify photos --labels labels.txt",
        "cloob embed photos -o photos.npy",
        "cloob zoo list",
    ),
    "classify": (
        "cloob classify photos --labels labels.txt",
        "cloob classify photos -l labels.txt --top-k 3 -o labels.csv",
        "cloob classify a.jpg b.jpg --label cat --label 'dog: puppy | hound' --json",
        "cloob classify photos -l labels.txt --unknown other",
        "cloob classify photos --examples sorted-by-hand",
        "cloob classify -l labels.txt --calibrate sorted-by-hand --calibration calibration.json",
        "cloob classify photos -l labels.txt --sort-into sorted --sort-mode move",
        "cloob classify photos -l labels.txt --html report.html",
    ),
    "embed": (
        "cloob embed photos -o photos.npy",
        "cloob embed photos -o photos.lance",
        "cloob embed photos --layout clip-retrieval -o photos-embedded",
        "cloob embed --text queries.txt -o queries.npy",
        "cloob embed s3://bucket/shards -o shards.parquet --engine ray",
    ),
    "dedupe": (
        "cloob dedupe photos",
        "cloob dedupe photos --identical --json",
        "cloob dedupe photos --min-cosine 0.97 --max-bits 4 --html duplicates.html",
    ),
    "search": (
        'cloob search photos "a red bicycle"',
        "cloob search photos --image a.jpg --also snow:0.5 --minus people --top 20",
        "cloob search photos beach --min-score 0.25 --print0",
        "cloob search photos.npy sunset --json",
    ),
    "eval": (
        "cloob eval cloob-xs-pictograms flowers",
        "cloob eval cloob-xs-pictograms flowers signs --model runs/my-model/model --json",
        "cloob eval cloob-rn50-yfcc paper -o scores.json --skip-existing",
        "cloob eval cloob-xs-pictograms flowers signs --html report.html",
    ),
    "undo": ("cloob undo sorted/cloob-undo-20260314-092653.jsonl",),
    "analyze": (
        "cloob analyze cloob-xs-pictograms flowers --plots plots",
        "cloob analyze cloob-xs-pictograms pairs.parquet --scale-hopfield 8 --scale-hopfield 30 --json",
    ),
    "train": (
        "cloob train folder-quickstart --set data.train=photos --set name=my-model",
        "cloob train my-recipe.toml --dry-run",
        "cloob train my-recipe.toml --resume",
    ),
    "doctor": ("cloob doctor", "cloob doctor --json"),
    "zoo": (
        "cloob zoo list",
        "cloob zoo pull cloob-vit-b-16-laion400m-32ep",
        "cloob zoo default cloob-vit-b-16-laion400m-32ep",
    ),
    "zoo list": ("cloob zoo list", "cloob zoo list --json"),
    "zoo show": ("cloob zoo show cloob-rn50-yfcc",),
    "zoo path": ("cloob zoo path cloob-xs-pictograms",),
    "zoo default": ("cloob zoo default", "cloob zoo default cloob-vit-b-16-laion400m-32ep"),
    "zoo pull": (
        "cloob zoo pull cloob-vit-b-16-laion400m-32ep",
        "cloob zoo pull hf://ORG/REPO --name my-model",
        "cloob zoo pull cloob-rn50-yfcc --dry-run",
    ),
    "zoo add": (
        "cloob zoo add runs/my-model/model --name my-model",
        "cloob zoo add my-open-clip-folder --name my-clip",
    ),
    "zoo verify": (
        "cloob zoo verify cloob-xs-pictograms --deep",
        "cloob zoo verify cloob-xs-pictograms --scores --data eval",
    ),
    "zoo rm": ("cloob zoo rm my-model",),
    "zoo prune": ("cloob zoo prune --dry-run",),
    "zoo convert": (
        "cloob zoo convert checkpoint.pt -o my-model",
        "cloob zoo convert my-transformers-folder -o my-model",
    ),
    "zoo export": ("cloob zoo export cloob-vit-b-16-laion400m-32ep --to open_clip -o for-open-clip",),
    "zoo blend": ("cloob zoo blend runs/my-model/start runs/my-model/end --alpha 0.3 -o my-blend",),
    "zoo bundle": ("cloob zoo bundle my-model -o my-model.tar",),
    "zoo push": ("cloob zoo push my-model ORG/REPO --private",),
}


def add_examples(app: typer.Typer, group: str = "") -> None:
    """Give every command below `app` its examples; `group` is what is typed before its commands."""
    app.info.epilog = _text(group)
    for command in app.registered_commands:
        command.epilog = _text(f"{group} {command.name}".strip())
    for inner in app.registered_groups:
        if inner.typer_instance is not None:
            inner.epilog = _text(f"{group} {inner.name}".strip())
            add_examples(inner.typer_instance, f"{group} {inner.name}".strip())


def _text(command: str) -> str | None:
    lines = _EXAMPLES.get(command, ())
    # \b keeps the lines as they are; other paragraphs are wrapped anew.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) if lines else None
