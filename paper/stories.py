"""Stories: is it so with a real language model, beyond the distance that the data come from?

Beyond the paper. stories260K (260 thousand parameters, TinyStories) and pairs of its own samples,
the paper's "SFT against SFT", labelled by a sentiment lexicon with noise; its folder and the pairs
are not part of this repository. The golden preference model has four times the proxy's layers. IPO
at beta 0.02 and DPO at beta 0.2, both sides, 800 steps at 1e-4. There is no ground-truth score.

Prediction, written down before the runs: level up to 4 nats, online ahead beyond. Three seeds.
"""

import os
from functools import partial
from pathlib import Path

from paper.runs import Job, run, setup, stage
from paper.statistics import Row, arms_report, differences, flat, gather, table, told

SHARED = Path(os.environ.get("TANDEM_SHARED", "../shared"))
SEEDS, BETAS, STEPS = (31, 32, 33), {"ipo": 0.02, "dpo": 0.2}, 800
LENGTHS = ("--max-prompt-tokens", 64, "--max-response-tokens", 48, "--on-bad-row", "skip")


def stories(seed: int) -> Job:
    model = SHARED / "models/stories260K"
    deep = stage("stories__deeper", "deeper", "--model", model, "--times", 4, seconds=10)
    words = ["--model", model, "--dataset", SHARED / "data/stories/pairs.jsonl.gz"]
    words += ["--golden-model", deep.folder, "--sft-steps", 0, "--golden-steps", 500]
    words += ["--proxy-steps", 300, "--policy-learning-rate", 1e-4, *LENGTHS]
    return setup(f"stories-{seed}", seed, *words, needs=(deep,), seconds=900)


def arms(loss: str, seed: int) -> dict[str, list[Job]]:
    words = "--learning-rate", 1e-4, "--beta", BETAS[loss], *LENGTHS
    return {
        side: [
            run(
                "stories",
                f"{seed}__{loss}_{side}",
                f"{loss}_{side}",
                stories(seed),
                seed,
                STEPS,
                *words,
                cost=2.5,
            )
        ]
        for side in ("online", "offline")
    }


def jobs() -> list[Job]:
    return [job for loss in BETAS for job in flat(partial(arms, loss), SEEDS)]


def report(pictures: Path) -> tuple[str, list[Row]]:
    both, lines, budgets = {}, [], (1, 2, 3, 4, 6, 8, 12)
    for loss in BETAS:
        groups = gather(partial(arms, loss), SEEDS)
        both |= {f"{loss.upper()}, {side}": some for side, some in groups.items()}
        apart = [differences(groups, "online", "offline", k, "golden") for k in budgets]
        lines.append([loss.upper(), *(told(values, "+") for values in apart)])
    title = "stories260K: both sides, farther than the data"
    text, rows = arms_report("stories", both, "DPO, offline", pictures, title)
    head = "online less offline", *(f"{k} nats" for k in budgets)
    return f"{text}\n\n{table(head, lines)}", rows
