"""Contract suites of the interfaces, and tiny models to run them on."""
