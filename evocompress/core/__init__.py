"""The words of the program, its settings and its files; everything else stands on this room.

`types` are the words as frozen data (docs/words.md); `config` and `space_config` are the settings
of a run file, which `config_file` reads; `errors` are told in one line; `files` appear whole and
are checked when they are read back; `progress` is told of slow steps.

Interface: the dataclasses of `evocompress.core.types`, `evocompress.core.config.RunConfig`,
`evocompress.core.errors`, `evocompress.core.files`.

Imported by: `api`, `cli`, `compression`, `distributed`, `evaluation`, `export`, `healing`,
`models`, `pipeline`, `report`, `search`, `space`, `testing`. Knows no model and no search.
"""
