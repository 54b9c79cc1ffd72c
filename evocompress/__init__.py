"""Find how to compress a pretrained transformer, and do it.

Importing this package imports neither torch nor ray. The stages of a run are functions of
`evocompress.api`; `evocompress.models.load` loads a model by itself.
"""

__version__ = "0.1.0"
