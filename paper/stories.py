"""Stories: is it so with a real language model, beyond the distance that the data come from?

Beyond the paper. stories260K (260 thousand parameters, TinyStories) and pairs of its own samples,
the paper's "SFT against SFT", labelled by a sentiment lexicon with noise; its folder and the pairs
are not part of this repository. The golden preference model has four times the proxy's layers. IPO
at beta 0.02 and DPO at beta 0.2, both sides, 400 steps at 2e-4. There is no ground-truth score.

Prediction, written down before the runs: level up to 4 nats, online ahead beyond. Three seeds.
"""

import os
from pathlib import Path

from paper.runs import Job, run, setup, stage
from paper.statistics import Arms, Report, told

SHARED = Path(os.environ.get("TANDEM_SHARED", "../shared"))
SEEDS, BETAS, STEPS = (31, 32, 33), {"ipo": 0.02, "dpo": 0.2}, 400
LENGTHS = ("--max-prompt-tokens", 64, "--max-response-tokens", 48, "--on-bad-row", "skip")


def stories(seed: int) -> Job:
    model = SHARED / "models/stories260K"
    deep = stage("stories__deeper", "deeper", "--model", model, "--times", 4, seconds=10)
    words = ["--model", model, "--dataset", SHARED / "data/stories/pairs.jsonl.gz"]
    words += ["--golden-model", deep.folder, "--sft-steps", 0, "--golden-steps", 400]
    words += ["--proxy-steps", 300, "--policy-learning-rate", 1e-4, *LENGTHS]
    return setup(f"stories-{seed}", seed, *words, needs=(deep,), seconds=1000)


def arms(seed: int) -> Arms:
    made, data = {}, stories(seed)
    for loss, beta in BETAS.items():
        words = "--learning-rate", 2e-4, "--beta", beta, "--eval-prompts", 256, *LENGTHS
        for side in ("online", "offline"):
            script = f"{loss}_{side}"
            job = run("stories", f"{seed}__{script}", script, data, seed, STEPS, *words, cost=4.5)
            made[f"{loss.upper()}, {side}"] = [job]
    return made


def report(made: Report) -> None:
    budgets, lines = (1, 2, 3, 4, 6, 8, 12), []
    for loss in ("IPO", "DPO"):
        sides = f"{loss}, online", f"{loss}, offline"
        lines.append([loss, *(told(made.lead(*sides, "golden", k), "+") for k in budgets)])
    made.curves(made.groups, "stories", "stories260K: both sides, farther than the data")
    made.table(["online less offline, golden", *(f"{k} nats" for k in budgets)], lines)
