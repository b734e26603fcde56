"""The paper's experiments, and the frontier of any runs. See `python -m paper --help`."""
