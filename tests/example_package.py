"""The examples as an installed package, which they become without pip: fast, and offline."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "evocompress_examples"


def installed(site: Path) -> list[str]:
    """What is to be on the path, after a folder was given what pip would write there."""
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata)
    groups = project["entry-points"].items()
    parts = (f"[{group}]\n{_lines(offered)}" for group, offered in groups)
    (info / "entry_points.txt").write_text("\n".join(parts))
    return [str(site), str(EXAMPLES / "src"), str(ROOT)]


def _lines(offered: dict[str, str]) -> str:
    return "".join(f"{name} = {value}\n" for name, value in offered.items())
