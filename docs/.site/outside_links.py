"""For MkDocs: what a page links to in the repository outside of docs/ is shown where the repository is."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(\]\()(?!https?:|#)([^)\s#]+)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_more: Any) -> str:
    """Called by MkDocs with the text of each page."""
    here = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def shown(link: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(here, link[2]))
        return link[0] if place.startswith("docs/") else f"{link[1]}{config.repo_url}/blob/main/{place}"

    return _LINK.sub(shown, markdown)
