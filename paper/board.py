"""Board: the row of a loss of your own, beside the rows of ours.

    python -m paper board mine_online.py --beta 0.25 0.5

The file is a sibling of our scripts, of any name, in any folder. Each value of --beta is a setting:
400 steps on three seeds of the reviews task that no other experiment uses. A row has the win rate
with at most 1, 2 and 4 nats of KL to SFT; the best setting and step are chosen on one half of the
prompts and measured on the other (statistics.py). Our rows, which `python -m paper run board`
makes, have the scripts' learning rate and the frontier's betas.

Runs and results lie in runs/board/, in a folder for each version of the file: repeat an ended call,
and it continues; edit the loss, and it runs again.
"""

import ast
import hashlib
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean

import tyro

from common import check_ranges, fail, first_line
from paper import runs, swept
from paper.frontier import print_table
from paper.runs import SHORT, Job
from paper.statistics import BY, Arms, Report, flat, gather, told

SEEDS, AT_MOST, WORK = (41, 42, 43), (1, 2, 4), Path("runs/board")
BETAS = swept.BETAS | {"rloo": swept.RLOO_BETAS, "bo2": ()}  # Best-of-2 has no beta
OURS = [*(f"{loss}_online" for loss in BETAS), "ipo_offline", "dpo_offline"]
FLAGS = {"setup", "seed", "steps", "eval_every", "eval_at", "out", "resume"}


@dataclass
class Args:
    script: tyro.conf.Positional[str]
    """your file"""
    beta: tuple[float, ...] = ()
    """settings, one each; none: the script as it is"""
    jobs: int = 2
    """runs at a time, each on one core"""


def settings(script: str, name: str, betas: tuple[float, ...], seed: int, **kept) -> list[Job]:
    """A script's runs on a seed: one for each beta, or one without the flag."""
    flags = {f"{name}__beta={beta}": ("--beta", beta) for beta in betas} or {name: ()}
    told = script, swept.reviews(seed), seed, SHORT
    return [runs.run("board", name, *told, *words, **kept) for name, words in flags.items()]


def arms(seed: int) -> Arms:
    return {name: settings(name, name, BETAS[name.partition("_")[0]], seed) for name in OURS}


def check(args: Args) -> None:
    """End the program where the file is no sibling of our scripts. Nothing of it is run."""
    try:
        tree = ast.parse(Path(args.script).read_bytes(), args.script)
    except (OSError, ValueError, SyntaxError) as error:
        fail(f"{args.script}: cannot be read as a Python file ({first_line(error)})")
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if "Args" not in classes or not args.script.endswith(".py"):
        fail(f"{args.script}: must be NAME.py with a class Args; begin with a copy of our script")
    fields = [field for field in classes["Args"].body if isinstance(field, ast.AnnAssign)]
    given = {ast.unparse(field.target): field.value for field in fields}
    needed = FLAGS | ({"beta"} if args.beta else set())
    if lacking := sorted(needed - given.keys()):
        fail(f"{args.script}: its Args lack {', '.join(lacking)}, which the board passes")
    if bare := [name for name, value in given.items() if value is None]:
        told = f"have no default for {bare[0]}, which the board does not pass"
        fail(f"{args.script}: its Args {told}")


def rows(made: Report, by: str) -> list[list[str]]:
    """A row for each arm that is whole, behind a head."""
    table = [["", *(f"at most {k} nat{'s' * (k > 1)}" for k in AT_MOST), "seconds a step"]]
    for arm, by_seed in made.groups.items():
        if len(by_seed) == len(SEEDS):
            spent = mean(run["seconds_a_step"] for some in by_seed.values() for run in some)
            won = [told(made.won(arm, by, k)) for k in AT_MOST]
            table.append([arm, *won, f"{spent:.2f}"])
    return table


def report(made: Report) -> None:
    for by, text in BY.items():
        head, *lines = rows(made, by)
        made.table(head, lines, f"Win rates {text}.")


def main(args: Args) -> None:
    check_ranges(args)
    check(args)
    path = Path(args.script)
    version = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    home = WORK / runs.revision() / f"{path.stem}-{version}"

    def own(seed: int) -> Arms:
        words = args.script.removesuffix(".py"), path.stem, args.beta, seed
        return {path.name: settings(*words, home=home, keeps=("",))}  # keeps all

    jobs = flat(own, SEEDS)
    spent = [job.seconds / 60 for job in runs.plan(jobs)]
    minutes = (sum(spent) + (args.jobs - 1) * max(spent, default=0)) / args.jobs  # at most
    there = f"{sum(job.done for job in jobs)} of {len(jobs)} runs are there"
    print(f"{there}; the others and their setups take about {ceil(minutes)} minutes", flush=True)
    runs.make(jobs, args.jobs)
    groups = gather(lambda seed: own(seed) | arms(seed), SEEDS)
    for by, text in BY.items():
        print(f"\nwin rates {text}: mean and 95 % interval over {len(SEEDS)} seeds\n")
        print_table(rows(Report("board", groups, Path()), by))
    if missing := [arm for arm, by_seed in groups.items() if len(by_seed) < len(SEEDS)]:
        print(f"\nnot made yet: {', '.join(missing)}; `python -m paper run board` makes them")
    some = [run for by_seed in groups.values() for found in by_seed.values() for run in found]
    if len({run["revision"] for run in some}) > 1:
        print("\nthe rows were made by more than one version of our code, and may not compare")
