"""``python -m evocompress`` is the command line."""

from evocompress.cli.commands import main

if __name__ == "__main__":
    main()
