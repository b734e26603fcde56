"""A run's stream with the rejected response in the chosen one's place, for a loss that imitates what is chosen (Figure 9).

    python -m paper.turned --stream RUN/stream --which rejected --out FOLDER

`rejected` swaps the two in every pair; `both` keeps every pair and puts the swapped one behind it, so that neither response is
the preferred one. Another stream, in FOLDER/stream, comes out of it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from common import STREAM, fail, finished_folder, run_command

SWAPPED = {"chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"}


@dataclass
class Args:
    stream: str
    """the folder stream/ of an online run that was made with --save-stream"""
    which: Literal["rejected", "both"]
    """which response of a pair is to stand as the chosen one"""
    out: str
    """folder to write stream/ into"""


def main(args: Args) -> None:
    path = Path(args.stream, Path(STREAM).name)
    if not path.is_file():
        fail(f"{args.stream}: has no {path.name}; name the folder stream/ of a run with --save-stream")
    with finished_folder(args.out) as folder:
        (folder / STREAM).parent.mkdir()
        with open(folder / STREAM, "w") as file:
            for row in map(json.loads, path.read_text().splitlines()):
                swapped = {SWAPPED.get(name, name): value for name, value in row.items()}
                rows = [swapped] if args.which == "rejected" else [row, swapped]
                file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
