"""Find how to compress a pretrained transformer, and do it.

Importing this package imports neither torch nor ray. The stages of a run are functions of
`evocompress.api`; `evocompress.models.loading.load` loads a model by itself.
"""

from evocompress.core.former_names import know_former_names

__version__ = "0.1.0"

know_former_names()
