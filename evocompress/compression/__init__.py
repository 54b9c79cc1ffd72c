"""Compressed weights: criteria make them, a level library keeps them, a live model has them.

`criteria` know matrices and statistics but no model; `library` stores the weights of every unit at
every level; `live_model` swaps them into the model by pointers; `weights` is the one place where
the tensors of a candidate are put together, for the live model and for checkpoints.

Interface: `evocompress.compression.criteria.base.Criterion` and
`evocompress.compression.criteria.structure.StructuredCriterion` (a new one is one file and one
line, see docs/criteria.md), `evocompress.compression.library.build_library`,
`evocompress.compression.live_model.LiveModel`.

Imported by: `cli`, `distributed`, `evaluation`, `export`, `healing`, `pipeline`, `testing`.
"""
