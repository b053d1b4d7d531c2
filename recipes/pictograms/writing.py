"""Write training pairs as parquet, evaluation sets in CLIP_benchmark's layout, and what they were made of."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from captions import Choice
from choosing import Job
from rendering import DIGITS, Drawn, Labeled, Row, versions
from sources import Sources

from cloob_cli.atomic_files import replacing, replacing_folder

SHARDS = 8
_ROW_GROUP = 1000


def write_training(folder: Path, rows: Sequence[Row], seed: str) -> int:
    """Write pairs in random order to SHARDS parquet files; returns how many there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    mixed = sorted(rows, key=lambda row: (Choice("mixed", seed, row["source"]).number(), row["source"]))
    schema = pa.schema(
        {"image": pa.binary(), "captions": pa.list_(pa.string()), "kind": pa.string(), "source": pa.string()}
    )
    with replacing_folder(folder) as unfinished:
        for shard in range(SHARDS):
            first, last = (len(mixed) * number // SHARDS for number in (shard, shard + 1))
            table = pa.Table.from_pylist(list(mixed[first:last]), schema=schema)
            pq.write_table(
                table,
                unfinished / f"train-{shard:05}-of-{SHARDS:05}.parquet",
                row_group_size=_ROW_GROUP,
                compression="zstd",
            )
    return len(mixed)


def write_evaluation(folder: Path, images: Sequence[Labeled], templates: Sequence[str]) -> int:
    """Write a zero-shot classification set in CLIP_benchmark's webdataset layout; returns the number of images."""
    names = list(DIGITS) if {name for _, name, _ in images} == set(DIGITS) else sorted({name for _, name, _ in images})
    indices = {name: index for index, name in enumerate(names)}
    texts = {
        "classnames.txt": "\n".join(names) + "\n",
        "zeroshot_classification_templates.txt": "\n".join(templates) + "\n",
        "dataset_type.txt": "classification\n",
        "test/nshards.txt": "1\n",
    }
    with replacing_folder(folder) as unfinished:
        (unfinished / "test").mkdir()
        for name, text in texts.items():
            (unfinished / name).write_text(text, encoding="utf-8", newline="\n")
        with tarfile.open(unfinished / "test" / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, (image, name, text) in enumerate(images):
                parts = (("webp", image), ("cls", str(indices[name]).encode()), ("txt", text.encode()))
                for suffix, content in parts:
                    member = tarfile.TarInfo(f"s{number:07}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return len(images)


def write_summary(
    out: Path,
    sources: Sources,
    jobs: Sequence[Job],
    drawn: Mapping[str, Drawn],
    kept: Mapping[str, int],
    near: Mapping[str, int],
    counts: Mapping[str, int],
) -> None:
    """Write OUT/sources.json: packages, versions, licenses, and what became of the drawings of each set."""
    summary = {
        "packages": [package.model_dump() for package in sources.packages],
        "libraries": versions(),
        "limits": sources.limits.model_dump(),
        "counts": dict(counts),
        "sets": [
            {
                "name": job.set,
                "title": job.info.get("name"),
                "license": next(one.license for one in sources.sets if one.name == job.set),
                "use": job.use,
                "available": job.available,
                "chosen": len(job.drawings),
                "refused": drawn[job.set].refused,
                "near": near.get(job.set, 0),
                "kept": kept.get(job.set, 0),
            }
            for job in jobs
        ],
        "left_out": [one.model_dump() for one in sources.left_out],
    }
    with replacing(out / "sources.json") as unfinished:
        unfinished.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def write_licenses(out: Path, sources: Sources, jobs: Sequence[Job], kept: Mapping[str, int]) -> None:
    """Write OUT/LICENSES.md: the title, author and license of each set, which whoever passes images on has to name."""
    lines = [
        "# Sources and licenses",
        "",
        "The images are renderings of 64 x 64 pixels of the works below, scaled and reduced in colors; drawings of one",
        "color are recolored. Brand marks stay trademarks of their owners: a license covers the drawing only.",
        "",
        "| set | used in | images | title | author | license | address |",
        "|---|---|---|---|---|---|---|",
    ]
    for job in jobs:
        author = job.info.get("author") or {}
        license_ = job.info.get("license") or {}
        cells = [job.set, job.use, f"{kept.get(job.set, 0)}"]
        cells += [str(job.info.get("name", "")), str(author.get("name", "")), str(license_.get("spdx", ""))]
        cells.append(str(license_.get("url") or author.get("url") or ""))
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |")
    lines += ["", "| package | version | license | used for |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.version} | {one.license} | {one.use} |" for one in sources.packages]
    with replacing(out / "LICENSES.md") as unfinished:
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
