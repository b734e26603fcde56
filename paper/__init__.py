"""The frontier of runs as a command. See `python -m paper --help`."""
