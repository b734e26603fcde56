"""The paper's frontier of runs.

python -m paper frontier RUN...     KL to SFT against win rate, as PNG and SVG, and a table
"""

import sys

import tyro

from common import fail, run_command
from paper import frontier

if __name__ == "__main__":
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: python -m paper frontier [-h] RUN...\n\n{__doc__.strip()}")
    elif name != "frontier":
        fail(f"{name}: no such command; python -m paper frontier RUN... is the one")
    else:
        program = "python -m paper frontier"
        run_command(
            frontier.main,
            tyro.cli(frontier.Args, prog=program, description=frontier.__doc__, args=words),
        )
