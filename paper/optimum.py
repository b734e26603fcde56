"""Optimum: how far can each loss take offline and online, when nothing but the loss limits it?

    python -m paper optimum

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
from math import expm1, log, log1p
from pathlib import Path
from statistics import mean

from paper import swept
from paper.statistics import Row, load, table


@dataclass
class Args:
    pass


@dataclass
class Optimum:
    kl: float
    """KL(pi || mu) in nats"""
    h: float
    """mean h of pairs from mu, as D_golden's are"""


def offline_ipo(beta: float) -> Optimum:
    expected = 1 / -expm1(-1 / beta) - beta  # E of u under pi
    log_z = 1 / beta + log(-beta * expm1(-1 / beta))
    return Optimum(expected / beta - log_z, 1 / (3 * beta))


def online_ipo(beta: float) -> Optimum:
    """F solves F' = exp(F / beta) / Z with F(0) = 0 and F(1) = 1; under pi itself F is uniform."""
    share, count = -expm1(-1 / beta), 100_000
    ranks = [(i + 0.5) / count for i in range(count)]
    h = sum(-log1p(-share * u) * (2 * u - 1) for u in ranks) * 2 / count  # E |g(u) - g(u')|
    return Optimum(1 / (2 * beta) + log(beta * share), h)


def measured_h(side: str, beta: float) -> list[float]:
    """Mean h on D_golden after the last step of the run at the lowest rate, a number a seed."""
    jobs = [swept.whole("ipo", side, min(swept.RATES), beta, seed) for seed in swept.SEEDS]
    last = [result["evals"][-1] for job in jobs if (result := load(job))]
    return [row["chosen_logratio"] - row["rejected_logratio"] for row in last]


def report(pictures: Path | None = None) -> tuple[str, list[Row]]:
    lines, rows = [], []
    for side, optimum in (("offline", offline_ipo), ("online", online_ipo)):
        for beta in sorted(swept.BETAS["ipo"], reverse=True):
            found, h = optimum(beta), measured_h(side, beta)
            seen = f"{mean(h):.2f}" if h else "not made yet"
            lines.append([f"IPO, {side}", beta, f"{found.kl:.2f}", f"{found.h:.2f}", seen])
            rows += [("optimum", f"IPO, {side}", "", "KL", beta, found.kl)]
            rows += [("optimum", f"IPO, {side}", "", "mean h", beta, found.h)]
    lines.append(["DPO, hard labels", "any", "no finite optimum", "no finite optimum", ""])
    head = "loss", "beta", "KL, nats", "mean h on D_golden", "measured at the lowest rate"
    return table(head, lines), rows


def main(args: Args) -> None:
    print(report()[0])
