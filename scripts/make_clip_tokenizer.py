"""Write cloob_cli/_tokenizers/clip.json from CLIP's merge table.

The table is the file bpe_simple_vocab_16e6.txt.gz of OpenAI's CLIP; the PyPI package open_clip_torch carries it:

    pip download --no-deps open_clip_torch
    unzip open_clip_torch-*.whl 'open_clip/bpe_simple_vocab_16e6.txt.gz'
    python scripts/make_clip_tokenizer.py open_clip/bpe_simple_vocab_16e6.txt.gz
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

from cloob_cli.data.tokenizer import byte_level_bpe

MERGES = 49152 - 256 - 2  # as many as CLIP's SimpleTokenizer takes, after the table's head line
TARGET = Path(__file__).parents[1] / "cloob_cli" / "_tokenizers" / "clip.json"


def main(table: Path) -> None:
    lines = gzip.decompress(table.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : MERGES + 1]]
    tokenizer = byte_level_bpe([(left, right) for left, right in merges])
    tokenizer.save(str(TARGET), pretty=False)
    print(f"{TARGET}: {tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
