"""Writes a candidate as a checkpoint (`materialize`); `FORMATS` names the forms it can take."""

from evocompress.export.checkpoint import check_format, choose_format, materialize
from evocompress.export.formats import FORMATS, Format
from evocompress.export.record import Record, read_candidate, read_record

__all__ = [
    "FORMATS",
    "Format",
    "Record",
    "check_format",
    "choose_format",
    "materialize",
    "read_candidate",
    "read_record",
]
