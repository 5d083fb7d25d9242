"""The status page: static files of this folder, and what they may do in a browser.

One HTML file, one style sheet, one script, one icon; nothing is fetched from anywhere else. What
the page shows comes from ``/status.json`` and ``/history.json``.

Sources: CSP Level 3; Fetch, "X-Content-Type-Options".
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Final, NamedTuple

from relay.page.history import INTERVAL, History

__all__ = ["HEADERS", "INTERVAL", "Asset", "History", "assets"]

HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # Whatever text a collector or a client gets onto the page: no script of theirs runs,
        # nothing is loaded, and no other site shows the page in a frame.
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
            " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        # Another version's script beside this version's page would be a puzzle.
        "Cache-Control": "no-cache",
    }
)
"""Headers of every file of the page."""

_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class Asset(NamedTuple):
    """One file: its text and its media type."""

    text: str
    content_type: str


def assets() -> dict[str, Asset]:
    """Read the files of the page, by the path that each is served at."""
    folder = files(__name__)
    return {
        path: Asset((folder / name).read_text(encoding="utf-8"), content_type)
        for path, (name, content_type) in _FILES.items()
    }
