"""The paper's experiments as commands, and what came out. See `python -m paper --help`."""
