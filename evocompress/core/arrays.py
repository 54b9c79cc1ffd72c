"""Names of array types: what the elements are, and what an array stands for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

Genome = Integers
"""A candidate of a search space as indices of levels (U,), or several of them (N, U)."""
