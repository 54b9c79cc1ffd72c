"""The words of the program, its settings and its files; everything else stands on this room.

Frozen data (`types`), settings of a run file (`config`, `space_config`, `fields`), errors that are
one line, files that appear whole and are checked when they are read back, and progress.

Interface: the dataclasses of `evocompress.core.types`, `evocompress.core.config.RunConfig`,
`evocompress.core.errors`, `evocompress.core.files`.

Imported by: `api`, `cli`, `compression`, `distributed`, `evaluation`, `export`, `healing`,
`models`, `pipeline`, `report`, `search`, `space`, `testing`. Knows no model and no search.
"""
