"""Two scripts side by side on a page, each difference with its reason.

python tools/diff.py ipo_offline.py ipo_online.py     writes diff.html
python tools/diff.py --all                            makes the pages in docs/diffs/ again
"""

import re
import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import tyro
from markupsafe import Markup

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))  # where common.py is

from common import fail, run_command  # noqa: E402
from tools import write_page  # noqa: E402

LOSSES = ("ipo", "dpo", "slic", "bo2")
PAIRS = [(f"{loss}_offline", f"{loss}_online") for loss in LOSSES]
PAIRS += [("ipo_online", f"{loss}_online") for loss in (*LOSSES[1:], "rloo")]
PAIRS += [("ipo_online", "ipo_hybrid")]

# Why two scripts differ. Each reason goes with a piece of text in the lines that differ, where
# those are lines of this repository's scripts: of others' lines nothing is known.
REASONS = {
    # ---- the top
    ": learn from pairs": "The first line names the loss and says where the pairs come from.",
    "The sibling": "The script to read beside it.",
    "    margin,": "Imported to ask the proxy which of two samples is better.",
    # ---- arguments
    '"""preference pairs: file': "Offline needs prompts with labelled responses. Online reads the"
    " prompts alone: it does without the responses and labels of others.",
    "it labels samples": "Online learns from the proxy. Offline only reports what it says.",
    "offline_share: float": "How much of each batch is read: the one choice the hybrid adds.",
    "pull to the reference": "Beta has another meaning, and so another default, in each loss.",
    "scale: float": "RLOO reads the size of the proxy's margin, so it has to say what a unit of it"
    " is worth. The others read its sign.",
    "shuffle: Literal": "Only pairs that were collected beforehand have an order to keep.",
    "sync_every: int": "Online can choose how fresh its samples are. At 1 each batch comes from the"
    " policy as it is.",
    "save_pairs: bool": "Online makes its own pairs. It can keep them, and offline can read them.",
    # ---- the loss
    '"""(B,) ': "The loss as a formula. h is how much more the policy prefers chosen to rejected"
    " than the reference does.",
    "The first four: (B,)": "Where the formula is from.",
    "** 2": "IPO draws h to 1 / (2 beta), from below and from above.",
    "softplus(-beta * h)": "DPO pushes h up, ever more weakly, and never back.",
    "(1 - beta * h).clamp": "SLiC pushes h up with one force until it is 1 / beta, then no more.",
    "return -policy_chosen": "Best-of-2 makes the better response more likely. The other one and"
    " the reference play no part.",
    "rejected, margins, beta, scale": "RLOO's loss needs the proxy's margins too. In the others the"
    " labels say all.",
    "return -advantages": "RLOO pushes by the difference of two rewards, in which h is the price of"
    " KL. Its gradient draws h to scale times margin over beta, as IPO's draws it to 1 / (2 beta).",
    # ---- before the loop
    'required=("model", "dataset"': "Online cannot run without the proxy.",
    "prompts_alone=True": "Online needs no responses in its data. The others read them.",
    "args.shuffle)": "Both sides have the same prompts in step t, unless offline keeps an order.",
    "count = round(": "With a share that leaves one part empty, the hybrid would be its sibling.",
    "read = min(": "The first rows of a batch are read. Each process reads those among its own.",
    # ---- the loop
    "if step > saved and step % args.sync_every": "A run continues from a step where it samples"
    " again: samples that wait for their step are in no checkpoint.",
    'rng = generator(args.seed, t, "sample")': "This is what makes the difference. Offline reads"
    " pairs that others wrote. Online samples two responses to each prompt from the policy that it"
    " trains, and asks the proxy which is better.",
    "a batch of pairs: read some": "The hybrid reads some pairs of a batch, and samples responses"
    " to the other prompts.",
    "read:]": "The rows that are not read are sampled, as online does it.",
    "batch = [pairs[i]": "Pairs that are read have responses and labels in the data.",
    "for pair in batch[:read]]": "Both parts make one batch. From here on no line asks where a pair"
    " came from.",
    "margin_sizes =": "The pairs of a micro-batch are in another order than the margins. Chosen"
    " stands first, so each margin loses its sign.",
    "if args.save_pairs:": "Online keeps its pairs here, in the form that offline reads.",
}
CONTEXT = 3  # lines that are shown before and after a difference


@dataclass
class Args:
    scripts: tyro.conf.Positional[tuple[str, ...]] = ()
    """the two files to compare"""
    out: str = "diff.html"
    """the page to write"""
    all: bool = False
    """make the pages in docs/diffs/ again"""


@dataclass
class Section:
    kind: str
    """change; same, which is shown; or fold: the same, and far from any change"""
    rows: list[tuple[int | None, int | None]]
    """numbers of lines left and right, from 0; None where one side has no line"""
    reasons: list[str]
    """of a change; none where the table has none"""


def read_lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: is no text file that can be read ({error})")


def match(left: str, right: str) -> SequenceMatcher:
    """How the words of two lines go together; a word has the space before it."""
    a, b = (re.findall(r"\s*\w+|\s*[^\w\s]|\s+", line) for line in (left, right))
    return SequenceMatcher(None, a, b, autojunk=False)


def likeness(left: str, right: str) -> float:
    """Above 0 where two lines share half of their words, or begin with the same name."""
    begins = [re.match(r"\s*(\w+)", line) for line in (left, right)]
    same = None not in begins and begins[0][1] == begins[1][1]
    return match(left, right).ratio() - (0.0 if same else 0.5)


def align(left: list[str], right: list[str]) -> list[tuple[int | None, int | None]]:
    """Rows for two blocks that differ: lines that are alike side by side, in their order."""
    # (likeness, pairs) of the best way to put left[i:] beside right[j:]
    best = {(i, j): (0.0, ()) for i in range(len(left) + 1) for j in range(len(right) + 1)}
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            worth, pairs = best[i + 1, j + 1]
            paired = worth + likeness(left[i], right[j]), ((i, j), *pairs)
            best[i, j] = max(paired, best[i + 1, j], best[i, j + 1], key=lambda way: way[0])
    rows, i, j = [], 0, 0
    for k, m in (*best[0, 0][1], (len(left), len(right))):
        rows += [(n, None) for n in range(i, k)] + [(None, n) for n in range(j, m)] + [(k, m)]
        i, j = k + 1, m + 1
    return rows[:-1]


def compare(left: list[str], right: list[str]) -> list[Section]:
    """Both files from top to bottom."""
    known = {line for name in set(sum(PAIRS, ())) for line in read_lines(REPO / f"{name}.py")}
    opcodes = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    sections = []
    for n, (tag, i1, i2, j1, j2) in enumerate(opcodes):
        if tag != "equal":
            lines = left[i1:i2], right[j1:j2]
            rows = [(None if i is None else i + i1, j) for i, j in align(*lines)]
            rows = [(i, None if j is None else j + j1) for i, j in rows]
            text = "\n".join(line for line in lines[0] + lines[1] if line in known)
            reasons = [why for piece, why in REASONS.items() if piece in text]
            sections.append(Section("change", rows, reasons))
            continue
        rows = list(zip(range(i1, i2), range(j1, j2)))
        first = CONTEXT if n else 0
        last = len(rows) - (CONTEXT if n + 1 < len(opcodes) else 0)
        if last - first < 3:  # no shorter than the line that would stand for it
            first = last = len(rows)
        parts = ("same", rows[:first]), ("fold", rows[first:last]), ("same", rows[last:])
        sections += [Section(kind, part, []) for kind, part in parts if part]
    return sections


def paint(left: str, right: str) -> list[str]:
    """Two lines as HTML, with the words that differ marked, unless most of them do."""
    matcher, html = match(left, right), [Markup(), Markup()]
    if matcher.ratio() < 0.5:
        return [left, right]
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        for side, part in enumerate((matcher.a[i1:i2], matcher.b[j1:j2])):
            text = "".join(part)
            word = text.lstrip()
            mark = Markup("<mark>{}</mark>") if word and tag != "equal" else Markup("{}")
            html[side] += text[: len(text) - len(word)] + mark.format(word)
    return html


def write_diff(out: str | Path, names: tuple[str, str], left: list[str], right: list[str]) -> None:
    """Write the page of two files."""
    sections, said, notes = [], [], 0
    for section in compare(left, right):
        rows = []
        for i, j in section.rows:
            texts = [None if i is None else left[i], None if j is None else right[j]]
            if section.kind == "change" and None not in texts:
                texts = paint(*texts)
            rows.append(list(zip((i, j), texts)))
        new = bool(section.reasons) and section.reasons != said  # not told just before
        notes, said = notes + new, section.reasons if section.kind == "change" else said
        sections.append({"number": notes if new else None, "section": section, "rows": rows})
    same = sum(len(each["rows"]) for each in sections if each["section"].kind != "change")
    write_page(out, "diff.html", names=names, sections=sections, same=same, files=(left, right))


def main(args: Args) -> None:
    pages = [(args.out, args.scripts)]
    if args.all:
        pages = [(REPO / "docs/diffs" / f"{a}--{b}.html", (f"{a}.py", f"{b}.py")) for a, b in PAIRS]
    for out, scripts in pages:
        if len(scripts) != 2:
            fail(f"{len(scripts)} files named; name the two to compare, or pass --all")
        left, right = (read_lines(REPO / name if args.all else name) for name in scripts)
        write_diff(out, scripts, left, right)


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
