"""The paper's experiments, and the frontier of any runs.

python -m paper frontier RUN...     draw given runs: KL to SFT against win rate, and a table
python -m paper run QUESTION...     make the runs of experiments, after an estimate of their cost
python -m paper board SCRIPT        your own loss beside ours
python -m paper optimum             how far IPO can go: KL and h of its optimum at a beta
python -m paper page                docs/findings.md from all results, its pictures, one CSV file
"""

import sys

import tyro

from common import fail, run_command
from paper import board, frontier, optimum, page

COMMANDS = {"frontier": (frontier.Args, frontier.main, frontier.__doc__)}
COMMANDS |= {"run": (page.RunArgs, page.run, page.RunArgs.__doc__)}
COMMANDS |= {"board": (board.Args, board.main, board.__doc__)}
COMMANDS |= {"optimum": (optimum.Args, optimum.main, optimum.__doc__)}
COMMANDS |= {"page": (page.Args, page.main, page.__doc__)}

if __name__ == "__main__":
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: python -m paper COMMAND [-h] ...\n\n{__doc__.strip()}")
    elif name not in COMMANDS:
        fail(f"{name}: no such command; there are {', '.join(COMMANDS)}")
    else:
        args, main, text = COMMANDS[name]
        program = f"python -m paper {name}"
        run_command(main, tyro.cli(args, prog=program, description=text, args=words))
