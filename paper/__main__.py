"""The paper's figures, and pictures and tables from the folders that runs leave behind.

python -m paper fig1                the offline sweep against online, for one loss: makes the runs it lacks, picture, tables
python -m paper fig13               an online run's pairs, in its order and shuffled: makes the runs it lacks, picture, tables
python -m paper frontier RUN...     KL to SFT against win rate, as PNG and SVG, and a table
python -m paper agreement RUN...    how far the judges agree, on the data and on what each run's last policy samples
"""

from typing import Annotated

import tyro

from common import run_command
from paper import agreement, fig1, fig13, frontier

if __name__ == "__main__":
    args = tyro.cli(
        Annotated[fig1.Args, tyro.conf.subcommand("fig1", description=fig1.__doc__)]
        | Annotated[fig13.Args, tyro.conf.subcommand("fig13", description=fig13.__doc__)]
        | Annotated[frontier.Args, tyro.conf.subcommand("frontier", description=frontier.__doc__)]
        | Annotated[agreement.Args, tyro.conf.subcommand("agreement", description=agreement.__doc__)],
        description=__doc__,
    )
    modules = {fig1.Args: fig1, fig13.Args: fig13, frontier.Args: frontier, agreement.Args: agreement}
    run_command(modules[type(args)].main, args)
