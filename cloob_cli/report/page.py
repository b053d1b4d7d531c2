"""HTML pages out of templates: everything escaped, nothing loaded from elsewhere, only the page's own script runs."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cloob_cli import assets
from cloob_cli.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

# Written into every page, by which a later run knows that it may replace the file.
GENERATOR = f"cloob {__version__}"


def script_json(value: Any) -> str:
    """JSON that may stand in a `<script>` element: ASCII, and no character that HTML or JavaScript takes specially."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # U+2028 is \u2028 in it, as all beyond ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("'", "\\u0027")


def render(template: str, style: list[str], script: list[str], **values: Any) -> Iterator[str]:
    """The pieces of a page.

    Args:
        template: its file in the folder of templates.
        style, script: files that are put into the page, one after the other; nothing else may style or run there.
        values: what the template shows; text is escaped.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(assets.templates_folder()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css, code = _joined(style), _joined(script)
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(css)}'",
            f"script-src '{_hash(code)}'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    return environment.get_template(template).generate(policy=policy, generator=GENERATOR, css=css, code=code, **values)


def data_uri(content: bytes, media_type: str) -> str:
    """The bytes of an image as a URI that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _joined(names: list[str]) -> Markup:
    from markupsafe import Markup

    folder = assets.templates_folder()
    return Markup("".join((folder / name).read_text(encoding="utf-8") for name in names))


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
