"""``python -m evocompress`` is the command line."""

from evocompress.cli import main

if __name__ == "__main__":
    main()
