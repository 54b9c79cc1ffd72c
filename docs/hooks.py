"""Makes pages of files that lie outside of docs/, and links between both ways hold."""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "start.md",
    "evocompress/README.md": "code.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to pages of the site; what is another file of the repository is only named."""
    here = page.file.src_uri
    home = Path(SOURCES.get(here, f"docs/{here}")).parent

    def linked(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        path = normpath((home / target).as_posix())
        uri = PAGES.get(path) or path.removeprefix("docs/")
        if files.get_file_from_path(uri) is None and (ROOT / path).exists():
            return text
        return f"[{text}]({relpath(uri, Path(here).parent.as_posix())}{anchor})"

    return LINK.sub(linked, markdown)
