"""Hook of mkdocs: pages that ``nav`` does not name join the section of their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECTIONS = {
    "": "Background",
    "guides": "Guides",
    "reference": "Reference",
    "decisions": "Decisions",
}


def on_config(config: Any) -> Any:
    """Complete the navigation."""
    folder = Path(config["docs_dir"])
    sections = {title: pages for entry in config["nav"] for title, pages in entry.items()}
    named = {
        page
        for pages in sections.values()
        for page in (pages if isinstance(pages, list) else [pages])
    }
    for path in sorted(folder.rglob("*.md")):
        page = path.relative_to(folder)
        if page.as_posix() not in named:
            sections[SECTIONS[page.parent.as_posix().removeprefix(".")]].append(page.as_posix())
    config["nav"] = [{title: pages} for title, pages in sections.items() if pages]
    return config
