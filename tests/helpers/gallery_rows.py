"""The images of a page, as they stand in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def rows_of(page: Path) -> list[dict[str, Any]]:
    """The objects that the page's script reads."""
    [text] = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    return list(json.loads(text))
