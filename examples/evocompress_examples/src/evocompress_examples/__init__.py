"""One example of each thing that evocompress takes from other packages: see docs/extending.md."""
