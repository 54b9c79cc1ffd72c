"""How near the cost of a candidate, of a search and of a library is to what cannot be avoided.

SmolLM2-135M in one process; every ratio is the median of `--repeats` turns in which its two sides
follow each other. The figures, with their aims:

- `vs_forward` (0.93): tokens per second of evaluating a candidate over those of a bare forward
  pass of it, nothing shared; the lower of float32 and bfloat16 (`vs_forward_float32`,
  `vs_forward_bfloat16`, the latter only where the processor multiplies it in hardware).
- `head_N_rows`: output head and divergence in chunks of N rows, over the head's product alone.
- `evopress_workload` (1.15): a generation of 32 mutations, evaluated together, over each alone;
  `trie_efficiency` (0.9): that gain over the one that the trie's nodes predict.
- `depth_workload`: 32 candidates without a quarter of their sub-layers, together, over 32 dense
  ones; `depth_efficiency` (0.9): over what skipped operations and shared nodes predict.
- `window_workload`: as `evopress_workload`, of mutations of the last quarter of the blocks.
- `vs_published_recipe` (1.7): the 32 mutations by EvoPress's recipe (one sequence at a time,
  weights read from a file at each change, two log-softmaxes of all float32 logits) over ours.
- `swap_ms_per_100` (1): making the model another candidate that differs in the zeros of 100
  matrices; `swap_widths_ms_per_100`: that differs in the widths of so many, which it had before.
- `cost_10k_ms` (50): costs of 10,000 candidates.
- `overhead_fraction` (0.02): of a generation's time what is not evaluation.
- `library_vs_per_level` (3), `sweeps_vs_per_level` (5): 13 SparseGPT levels of all matrices against
  EvoPress's released code (a sweep a level, a factorisation and a Hessian a matrix, two passes),
  in all and factorisations and sweeps alone; `..._anew`: against SparseGPT run anew for each level,
  which factors each time. One block is built, and its time multiplied by their number.
- `library_peak_of_model` (2.5): the build's peak memory, the model included and one block's
  Hessians left out, over the model's bytes.

    python benchmarks/speed.py --json speed.json
    python benchmarks/speed.py --parts library --json library.json

``--quick`` does it on a tiny random model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from common import Figure, emit
from speed_candidates import candidates
from speed_library import libraries
from speed_search import searches
from speed_setting import Setting, full, quick

PARTS: Mapping[str, Callable[[Setting], dict[str, Figure]]] = {
    "candidates": candidates,
    "search": searches,
    "library": libraries,
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--quick", action="store_true", help="a tiny random model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make = quick if arguments.quick else full
        setting = make(Path(folder), arguments.repeats)
        figures: dict[str, Figure] = {}
        for part in arguments.parts:
            figures |= PARTS[part](setting)
        emit("speed", figures, arguments.json)


if __name__ == "__main__":
    main()
