"""One HTML file of the content, the script and the style; nothing in it is loaded from elsewhere."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from stage_sc.reports._content import Content

# Parts of the script, in their order.
SCRIPTS = ("data.js", "layout.js", "canvas.js", "regions.js", "details.js", "list.js", "files.js", "main.js")
# Characters of text inside an element <script> that HTML or old browsers could take for something else.
UNSAFE: dict[str, str | int | None] = {character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def build_page(content: Content) -> str:
    """Compose the page.

    Text of the data is in elements that browsers do not run, and the script writes it as text, never as HTML. Besides,
    the policy of the page names the digest of its one script: no other script runs, and nothing is loaded.
    """
    script = "\n".join(["'use strict';", *map(_read, SCRIPTS)])
    arrays = "\n".join(
        f'<script type="text/plain" id="array-{name}">{packed}</script>' for name, packed in content.arrays.items()
    )
    parts = {
        "TITLE": escape(content.facts["title"]),
        "POLICY": f"default-src 'none'; style-src 'unsafe-inline'; img-src blob: data:; script-src '{_hash(script)}'",
        "STYLE": _read("page.css"),
        "FACTS": safe_json(content.facts),
        "ARRAYS": arrays,
        "SCRIPT": script,
    }
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], _read("page.html"))  # once: text may have braces


def safe_json(value: Any) -> str:
    """JSON that can stand inside an element <script>."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(str.maketrans(UNSAFE))


def _read(name: str) -> str:
    return (files("stage_sc.reports") / "page" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """Digest of the script as the policy of a page has it."""
    return "sha256-" + b64encode(sha256(script.encode()).digest()).decode("ascii")
