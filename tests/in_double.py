"""`python tests/in_double.py ipo_offline ARGUMENTS`: a script whose models compute in float64, to compare the last digits."""

import importlib
import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: E402

load_model = common.load_model
common.load_model = lambda *args, **options: load_model(*args, **options).double()
script = importlib.import_module(sys.argv[1])
common.run_command(script.main, tyro.cli(script.Args, args=sys.argv[2:]))
