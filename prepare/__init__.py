"""Makes what every script starts from: the embedded world, or your own model and data. See `python -m prepare --help`."""
