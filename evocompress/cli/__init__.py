"""The command line: every command calls one function of `evocompress.api`.

Interface: `main`.

Imported by: `__main__`.
"""

from evocompress.cli.commands import app, main

__all__ = ["app", "main"]
