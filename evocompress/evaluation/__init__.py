"""How good a candidate is and how long it takes, for the search and for the report.

`calibration` reads text and images; `proxies` judge candidates on them; `estimates` tell a number
for every unit from a few passes; `profile` measures latency tables; `executor` answers requests in
this process. `heldout` measures finished models and shares no code with the proxies, so that no
winner is judged by the code that chose it; `tasks` asks them questions.

Interface: `evocompress.evaluation.proxies.base.Proxy` and
`evocompress.evaluation.estimates.base.Estimator` (a new one is one file and one line, see
docs/proxy.md), `evocompress.evaluation.heldout.heldout_quality`.

Imported by: `api`, `cli`, `distributed`, `pipeline`, `report`, `testing`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

MOVED = ("count", "count_flops", "heldout_quality", "measure_latency")
"""What was here in earlier versions and is in `evocompress.evaluation.heldout` now."""


def __getattr__(name: str) -> Any:
    """One of `MOVED`."""
    if name not in MOVED:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module("evocompress.evaluation.heldout"), name)
