"""A run: its parts, its loop, its journal and its folder.

`stages` are what commands do; `context` makes the parts of a run on first use; `early_checks` and
`checks` refuse what cannot work; `search_stage` searches with the `loop`, which asks the searcher
and appends every answer to the `journal`; `results` are the winner and the front; `comparison`
measures finished models. `planning` foretells time and memory; `sweep` is many runs;
`doctor` says what this computer has and lacks.

Interface: `evocompress.pipeline.context` (the run and its `Backend`),
`evocompress.pipeline.loop.search`, `evocompress.pipeline.journal.Journal`,
`evocompress.pipeline.run_folder.RunFolder`.

Imported by: `api`, `cli`, `distributed`, `report`.
"""
