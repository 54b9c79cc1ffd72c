"""Small searches whose journals, winners and checkpoints are kept, so that a change shows.

`cases` are the searches, `recording` makes and reads what is kept of one below ``records/``, and
`test_golden` compares. ``python -m tests.golden`` records anew.
"""
