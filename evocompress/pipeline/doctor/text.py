"""An examination as rows of tables."""

from __future__ import annotations

from evocompress.pipeline.doctor.examination import Examination
from evocompress.pipeline.doctor.findings import GIB

MATTER = ("torch", "transformers", "safetensors", "numpy", "numba", "pymoo", "lightgbm")
"""The required packages that are always shown; others where something is wrong with them."""


def package_rows(found: Examination) -> list[list[str]]:
    """The heading and a row for each package that matters."""
    rows = [["package", "installed", "wanted", ""]]
    others = 0
    for each in (found.python, *found.required):
        if each.name in ("Python", *MATTER) or each.obstacle:
            state = each.obstacle or "ok"
            rows.append([each.name, each.installed or "missing", each.wanted, state])
        else:
            others += 1
    return [*rows, [f"{others} others", "", "", "ok"]]


def machine_rows(found: Examination) -> list[list[str]]:
    """The heading and a row for each device and disk."""
    here = found.computer
    if here is None:
        return []
    fast = ", ".join(here.instructions) or "none that torch knows"
    rows = [
        ["device", "what it is"],
        ["processor", f"{here.processor}, {here.cores} cores, threads of torch: {here.threads}"],
        ["instructions", f"{fast}; torch uses {here.kernels}"],
        ["memory", f"{here.memory / GIB:.1f} GiB, {here.free_memory / GIB:.1f} free"],
    ]
    for gpu in here.gpus:
        text = f"{gpu.name}, {gpu.memory / GIB:.1f} GiB, {gpu.free / GIB:.1f} free"
        rows.append(["GPU", text])
    if not here.gpus:
        rows.append(["GPU", "none"])
    for disk in here.disks:
        rows.append([disk.purpose, f"{disk.folder}, {disk.free / GIB:.1f} GiB free"])
    return rows


def feature_rows(found: Examination) -> list[list[str]]:
    """The heading and a row for each optional feature."""
    rows = [["feature", "what for", "works"]]
    for each in found.features:
        works = "yes" if each.works else "no"
        rows.append([each.name, each.purpose, f"{works}; {each.note}" if each.note else works])
    return rows


def speed_rows(found: Examination) -> list[list[str]]:
    """The heading and a row for each figure of the speed test."""
    rows = [["speed", "", ""]]
    return [*rows, *([each.what, f"{each.value:,.0f}", each.unit] for each in found.speeds)]
