"""Writes a candidate as a checkpoint (`materialize`); `FORMATS` names the forms it can take."""

from evocompress.export.checkpoint import check_weights, materialize
from evocompress.export.choice import Choice, check_format, choose_for, choose_format
from evocompress.export.formats import FORMATS, WEIGHTS, Format
from evocompress.export.programs import PROGRAMS, program_named
from evocompress.export.record import Record, read_candidate, read_record

__all__ = [
    "FORMATS",
    "PROGRAMS",
    "WEIGHTS",
    "Choice",
    "Format",
    "Record",
    "check_format",
    "check_weights",
    "choose_for",
    "choose_format",
    "materialize",
    "program_named",
    "read_candidate",
    "read_record",
]
