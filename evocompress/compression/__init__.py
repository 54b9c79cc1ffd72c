"""Compressed weights: criteria make them, a level library keeps them, a live model has them.

`criteria` know matrices and statistics but no model; `library` stores the weights of every (unit,
level), which EvoPress calls a level database; `live_model` swaps them into the model by pointers;
`weights` is the one place where a candidate's tensors are put together, also for checkpoints.

Interface: `evocompress.compression.criteria.base.MatrixCriterion` and
`evocompress.compression.criteria.structure.StructuredCriterion` (one file and one line for a new
one, see docs/criteria.md), `evocompress.compression.library.build_library`,
`evocompress.compression.live_model.LiveModel`.

Imported by: `cli`, `distributed`, `evaluation`, `export`, `pipeline`, `testing`.
"""
