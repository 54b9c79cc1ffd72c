"""Writes a candidate as a checkpoint that a program loads.

`checkpoint` makes the folder whole or not at all; each format of `FORMATS` is a file that says
which candidates the format can express and builds the model; `choice` and `programs` know which
program loads which format; `layout` counts what a candidate leaves of every block.

Interface: `materialize`, `evocompress.export.formats.Format` (see docs/export.md).

Imported by: `api`, `cli`, `healing`, `pipeline`, `testing`.
"""

from evocompress.export.checkpoint import check_weights, materialize
from evocompress.export.choice import (
    Choice,
    check_format,
    check_program,
    choose_for,
    choose_format,
)
from evocompress.export.folder import check_target
from evocompress.export.formats import FORMATS, WEIGHTS, Format
from evocompress.export.programs import PROGRAMS, check_task, program_named
from evocompress.export.record import Record, read_candidate, read_record

__all__ = [
    "FORMATS",
    "PROGRAMS",
    "WEIGHTS",
    "Choice",
    "Format",
    "Record",
    "check_format",
    "check_program",
    "check_target",
    "check_task",
    "check_weights",
    "choose_for",
    "choose_format",
    "materialize",
    "program_named",
    "read_candidate",
    "read_record",
]
