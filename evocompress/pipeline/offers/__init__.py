"""What can be done to a model, and to models of every type of the installed transformers.

Interface: `offers`, `offers_by_type`, `Offers`, `ACTIONS`, and their texts.

Imported by: `api`, `cli`.
"""

from evocompress.pipeline.offers.offers import ACTIONS, Offers, offers
from evocompress.pipeline.offers.table import offers_by_type
from evocompress.pipeline.offers.text import (
    format_rows,
    formats_markdown,
    markdown,
    model_rows,
    type_rows,
)
from evocompress.pipeline.offers.types import offers_of_type, type_names

__all__ = [
    "ACTIONS",
    "Offers",
    "format_rows",
    "formats_markdown",
    "markdown",
    "model_rows",
    "offers",
    "offers_by_type",
    "offers_of_type",
    "type_names",
    "type_rows",
]
