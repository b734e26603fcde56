"""Pictures and tables from the folders that runs leave behind.

python -m paper frontier RUN...     KL to SFT against win rate, the paper's Figure 1, as PNG and SVG, and a table
python -m paper agreement RUN...    how far the judges agree, on the data and on what each run's last policy samples
"""

from typing import Annotated

import tyro

from paper import agreement, frontier

if __name__ == "__main__":
    args = tyro.cli(
        Annotated[frontier.Args, tyro.conf.subcommand("frontier", description=frontier.__doc__)]
        | Annotated[agreement.Args, tyro.conf.subcommand("agreement", description=agreement.__doc__)],
        description=__doc__,
    )
    (frontier if isinstance(args, frontier.Args) else agreement).main(args)
