"""Optimum: how far can each loss take offline and online, when nothing but the loss limits it?

A tabular policy over many responses, ranked without ties by the golden preference model, u in
[0, 1] a response's rank under mu, the policy that wrote the data and that training starts from.
Labels are hard. Then, with g(u) = log pi(u) / mu(u) and h = g(u) - g(u') of a pair, u above u':

offline IPO minimises E (h - 1 / (2 beta))^2 over pairs from mu; its optimum is
    pi = mu exp(u / beta) / Z, Z = beta (e^(1/beta) - 1)      (Tang et al. 2024, Appendix H)
online IPO rests where pi is the optimum for pairs from pi itself, F its distribution function:
    pi = mu exp(F(u) / beta) / Z, Z = 1 / (beta (1 - e^(-1/beta)))
DPO (and SLiC, with ever more responses) has no finite optimum with hard labels, on either side: a
larger h lowers the loss of every pair. What stops such a run is its length, not its loss.

So equal beta is not equal reach, and offline IPO near its optimum has not stalled: it is done.
"""

from dataclasses import dataclass
from math import expm1, log

from common import fail
from paper import swept
from paper.statistics import AT, Arms, Report, told


@dataclass
class Args:
    beta: tuple[float, ...] = (0.1, 0.05, 0.02)
    """betas of IPO"""


def arms(seed: int) -> Arms:
    """The runs at the lowest rate, whose h is measured beside."""
    pairs = [(side, beta) for side in ("offline", "online") for beta in swept.BETAS["ipo"]]
    rate = min(swept.RATES)
    return {f"{side}, {b}": [swept.whole("ipo", side, rate, b, seed)] for side, b in pairs}


def offline_ipo(beta: float) -> tuple[float, float]:
    """(KL(pi || mu) in nats, mean h of pairs from mu, as D_golden's are)."""
    expected = 1 / -expm1(-1 / beta) - beta  # E of u under pi
    log_z = 1 / beta + log(-beta * expm1(-1 / beta))
    return expected / beta - log_z, 1 / (3 * beta)


def online_ipo(beta: float) -> tuple[float, float]:
    """The same, where F' = exp(F / beta) / Z, F(0) = 0, F(1) = 1; under pi itself F is uniform."""
    share = -expm1(-1 / beta)
    h = 2 / share - 1 - 2 * (1 - share) / (beta * share**2)  # as g(u) = -log(1 - share u) - log Z
    return 1 / (2 * beta) + log(beta * share), h


def measured(runs: dict[int, list[dict]]) -> dict[int, tuple[float, float]]:
    """(KL to SFT, mean h on D_golden) after the last step, of each seed."""
    last = {seed: result["evals"][-1] for seed, (result,) in runs.items()}
    return {s: (e["kl"], e["chosen_logratio"] - e["rejected_logratio"]) for s, e in last.items()}


def report(made: Report) -> None:
    lines, panels = [], {"KL to SFT, nats": {}, "mean h on D_golden, nats": {}}
    for side, optimum in (("offline", offline_ipo), ("online", online_ipo)):
        betas = sorted(swept.BETAS["ipo"], reverse=True)
        asked = {beta: optimum(beta) for beta in betas}
        found = {beta: measured(made.groups[f"{side}, {beta}"]) for beta in betas}
        rows = [[f"IPO, {side}", beta] for beta in betas]
        for i, panel in enumerate(panels.values()):
            values = {beta: {s: pair[i] for s, pair in found[beta].items()} for beta in betas}
            panel[f"{side}, optimum"] = {beta: [asked[beta][i]] for beta in betas}
            panel[f"{side}, measured"] = {beta: [*values[beta].values()] for beta in betas}
            for row in rows:
                measure = ("KL, nats", "mean h, nats")[i]
                real = made.cell(f"{row[0]}, beta {row[1]}", measure, values[row[1]])
                row += [f"{asked[row[1]][i]:.2f}", real]
        lines += [[*row, told(made.won(f"{side}, {row[1]}", "golden"))] for row in rows]
    axis = {"xlabel": "beta", "xticks": betas}
    made.draw(panels, "optimum", "IPO: where its loss leads, and where runs end", None, **axis)
    lines.append(["DPO, hard labels", "any", "no finite optimum", "", "no finite optimum", "", ""])
    head = ["loss", "beta", "KL, optimum", "KL, measured", "mean h, optimum", "mean h, measured"]
    head += [f"win rate at {AT} nats, golden"]
    text = "KL and mean h on D_golden, in nats, after the last step at the lowest learning rate."
    made.table(head, lines, text)


def main(args: Args) -> None:
    print("beta   offline: KL, mean h   online: KL, mean h   (nats)")
    for beta in args.beta:
        if not 0.005 <= beta <= 10:
            fail(f"--beta {beta}: must be from 0.005 to 10")
        (kl, h), (online_kl, online_h) = offline_ipo(beta), online_ipo(beta)
        print(f"{beta:<6g} {kl:8.2f} {h:10.2f} {online_kl:15.2f} {online_h:9.2f}")
