"""Makes what every script starts from: the reviews task, or your own model and data. See `python -m prepare --help`."""
