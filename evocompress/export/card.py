"""The README.md of a checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evocompress.export.record import Record
from evocompress.types import Candidate, Unit

SPARSE_NOTE = (
    "The zeros are stored as ordinary dense safetensors: they take the same space as other "
    "weights and make nothing faster on hardware or kernels without support for sparsity."
)


def model_card(
    record: Record,
    candidate: Candidate,
    units: Sequence[Unit],
    loading: str,
    notes: Sequence[str] = (),
) -> str:
    """The text of README.md.

    Args:
        record: The content of ``candidate.json``.
        candidate: What was done to the model.
        units: All units of the dense model.
        loading: Python that loads the checkpoint.
        notes: Paragraphs to add, e.g. what was measured.
    """
    # A local path would be wrong as a hub id on any other machine.
    hub_id = record.source.count("/") == 1 and not Path(record.source).exists()
    base = [f"base_model: {record.source}"] if hub_id else []
    header = ["---", "library_name: transformers", *base, "tags:", "- evocompress", "---"]
    paragraphs = [
        "\n".join(header),
        "# Compressed language model",
        f"Made by evocompress from `{record.source}` (fingerprint `{record.model_fingerprint}`). "
        f"Candidate `{record.id}`; `candidate.json` has every detail.",
        *_what_was_done(candidate, units),
        _cost_table(record),
        *notes,
        "## Loading",
        f"```python\n{loading}\n```",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _what_was_done(candidate: Candidate, units: Sequence[Unit]) -> list[str]:
    kinds = {unit.name: unit for unit in units}
    dropped = [kinds[name] for name, level in candidate.levels if level.drop]
    sparse = [(kinds[name], level) for name, level in candidate.levels if not level.drop]
    text = ["## What was done"]
    for kind in Counter(unit.kind for unit in dropped):
        blocks = ", ".join(str(b) for b in sorted(u.block for u in dropped if u.kind == kind))
        text.append(f"Removed {kind} sub-layers of the dense model's blocks: {blocks}.")
    if sparse:
        zeros = sum(level.zeros for _, level in sparse)
        weights = sum(unit.numel for unit, _ in sparse)
        share = f"{zeros:,} of their {weights:,} weights ({zeros / weights:.1%})"
        text.append(f"{len(sparse)} matrices have zeros: {share}. {SPARSE_NOTE}")
    return text if len(text) > 1 else [*text, "Nothing: this is the dense model."]


def _cost_table(record: Record) -> str:
    names = dict.fromkeys([*record.measured, *record.predicted])
    rows = ["| cost | predicted | measured |", "|---|---|---|"]
    for name in names:
        predicted, measured = record.predicted.get(name), record.measured.get(name)
        rows.append(f"| {name} | {_number(predicted)} | {_number(measured)} |")
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
