"""Contract suites of the interfaces, and tiny models to run them on.

A new family, criterion, searcher, proxy, estimate or format passes the suite of its kind, also
where it is in a package from outside.

Interface: one module for each kind, such as `evocompress.testing.searchers`.

Imported by: nobody.
"""
