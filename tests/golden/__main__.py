"""Records the golden searches anew: ``python -m tests.golden [CASE ...]``.

To be done only where journals, winners or checkpoints are meant to become others, and then the
commit says why; a change that is to keep behaviour keeps the records. New versions of torch or
numpy, or another processor, are no reason: there the records are compared within tolerances.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.golden.cases import CASES
from tests.golden.recording import record, save


def main(names: Sequence[str]) -> None:
    """Records the named cases, or all of them."""
    unknown = set(names) - {case.name for case in CASES}
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; see tests/golden/cases.py")
    for case in CASES:
        if not names or case.name in names:
            with tempfile.TemporaryDirectory() as home:
                save(record(case, Path(home)), case.name)
            print(f"recorded {case.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
