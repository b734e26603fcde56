"""Two scripts side by side: what differs, in the terminal, or both as a whole, on a page. Each difference with its reason.

python tools/diff.py ipo_offline.py ipo_online.py
python tools/diff.py ipo_offline.py ipo_online.py --html page.html
python tools/diff.py --all                                            the pages in docs/diffs/, made anew
"""

import re
import sys
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path

import pygments
import tyro
from markupsafe import Markup
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String
from rich.console import Console
from rich.table import Table
from rich.text import Text

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))  # a script finds what lies beside it, and common.py lies above

from common import check_ranges, fail, run_command  # noqa: E402
from tools import page, write_page  # noqa: E402

PAIRS = [(f"{loss}_offline", f"{loss}_online") for loss in ("ipo", "dpo", "slic", "bo2")]
PAIRS += [
    ("ipo_online", other) for other in ("dpo_online", "slic_online", "bo2_online", "ipo_hybrid")
]

# Why two scripts differ, each reason by a piece of text that stands in the difference, in a line of this repository's scripts:
# of what a reader has written nothing is known. What differs in these scripts and has no reason here fails a test.
REASONS = {
    # ---- the top
    ": learn from pairs": "The first line says which loss it is, and where its pairs come from.",
    "Its sibling": "The script to read beside it.",
    # ---- what is imported
    "    save_pairs,": "Imported to keep the pairs that the run made; offline has them in its data.",
    "    setup_part,": "Imported to find the setup's proxy, which offline only evaluates with.",
    "    processes,": "Imported because each of several processes reads and samples its own part of the batch.",
    # ---- arguments
    "proxy: str": "Pairs that were just sampled need the proxy to label them. Of the data, online reads the"
    " prompts alone: somebody else's responses and labels are what it does without.",
    "of the sampled part only": "The hybrid reads pairs for one part of a batch, and prompts alone for the other.",
    "offline_share: float": "How much of each batch is read: the one choice that the hybrid adds.",
    "strength of the pull": "beta means something else in each loss, so each has its own default.",
    "shuffle: Literal": "Offline has an order of the data to choose.",
    "sync_every: int": "Online has to say how fresh its samples are: at 1 every batch comes from the policy as it is.",
    "save_pairs: bool": "Only pairs that a run made itself need keeping. An offline script can be given them afterwards.",
    # ---- the loss
    '"""(B,) ': "The loss as a formula. h is how much further the policy prefers chosen to rejected than the reference does.",
    "All arguments but beta": "Where the formula is from.",
    "** 2": "IPO draws h to 1 / (2 beta), from below and from above.",
    "softplus(-beta * h)": "DPO pushes h up, ever more weakly, and never back.",
    "(1 - beta * h).clamp": "SLiC pushes h up with one force until it is 1 / beta, and then not at all.",
    "return -policy_chosen": "Best-of-2 makes the better response more likely; the other one and the reference play no part.",
    # ---- before the loop
    "prompts_alone=True": "Online needs no responses in its data. The hybrid reads some, and so needs pairs.",
    "load_preference_model(args.proxy": "The same on both sides. Online learns from it; offline only reports its opinion.",
    "args.shuffle)": "Step t has the same prompts on both sides. Only what was collected beforehand has an order to keep.",
    "count = round(": "A share that leaves one part empty makes a sibling of the hybrid, so it is refused.",
    # ---- the loop
    "ahead = []": "Batches wait here between sampling and training; by default there is one, trained on at once.",
    "sample(policy, prompts * 2": "What makes the difference. Offline reads pairs that others wrote and golden labelled."
    " Online samples two responses to each prompt from the policy that is being trained, and asks the proxy which is better.",
    "read a part of them": "The first rows of a batch are read, as offline reads them.",
    "[count // processes() :]": "The other rows are sampled and judged, as online does it.",
    "for pair in read] + ": "Both parts make one batch, and from here on nobody asks where a pair came from.",
    'names = ("time/sample"': "Offline neither samples nor labels: all its time is training.",
    "if not ahead:": "With sampled batches still waiting, a run could not go on from here to the bit; offline has none.",
}


@dataclass
class Args:
    scripts: tyro.conf.Positional[tuple[str, ...]] = ()
    """the two files to compare"""
    html: str | None = None
    """write a page to this file, instead of showing what differs in the terminal"""
    context: int = 3
    """so many lines before and after a difference are shown, in the page not folded away"""
    all: bool = False
    """make the pages in docs/diffs/ anew"""


@dataclass
class Section:
    """Lines that stand side by side."""

    kind: str
    """change; same, which is shown; or fold, what is the same and far from any change"""
    rows: list[tuple[int | None, int | None]]
    """numbers of the lines left and right, from 0; None where one side has no line"""
    reasons: list[str]
    """of a change; none where the table has none"""


def read_lines(path: str) -> list[str]:
    """The lines of a file, its last one too if no line end follows."""
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: no file of text that can be read ({error})")


def words(line: str) -> list[re.Match]:
    return list(re.finditer(r"\w+|[^\w\s]", line))


def match_words(left: str, right: str) -> SequenceMatcher:
    return SequenceMatcher(
        None, [word[0] for word in words(left)], [word[0] for word in words(right)], autojunk=False
    )


def likeness(left: str, right: str) -> float:
    """Above 0 for two lines that share half of their words, or begin with the same name: `chosen = ...` in both."""
    begins = [re.match(r"\s*(\w+)", line) for line in (left, right)]
    same = None not in begins and begins[0][1] == begins[1][1]
    return match_words(left, right).ratio() - (0.0 if same else 0.5)


def align(left: list[str], right: list[str]) -> list[tuple[int | None, int | None]]:
    """Rows for two blocks that differ: lines that are alike stand beside each other, as many as can in their order."""
    alike = [[likeness(a, b) for b in right] for a in left]
    best = [
        [(0.0, None)] * (len(right) + 1) for _ in range(len(left) + 1)
    ]  # of what follows: likeness, and its first pair
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            here = (alike[i][j] + best[i + 1][j + 1][0], (i, j))
            best[i][j] = max(here, best[i + 1][j], best[i][j + 1], key=lambda option: option[0])
    rows, i, j = [], 0, 0
    while pair := best[i][j][1]:
        rows += (
            [(k, None) for k in range(i, pair[0])] + [(None, k) for k in range(j, pair[1])] + [pair]
        )
        i, j = pair[0] + 1, pair[1] + 1
    return (
        rows + [(k, None) for k in range(i, len(left))] + [(None, k) for k in range(j, len(right))]
    )


def compare(left: list[str], right: list[str], context: int) -> list[Section]:
    """Both files from top to bottom."""
    sections, known = (
        [],
        {line for script in set(sum(PAIRS, ())) for line in read_lines(str(REPO / f"{script}.py"))},
    )
    opcodes = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    for n, (tag, i1, i2, j1, j2) in enumerate(opcodes):
        if tag == "equal":
            rows = list(zip(range(i1, i2), range(j1, j2)))
            first, last = context if n else 0, len(rows) - (context if n + 1 < len(opcodes) else 0)
            if last - first < 3:  # as long as the line that stood for it
                first = last = len(rows)
            sections += [Section("same", rows[:first], []), Section("fold", rows[first:last], [])]
            sections += [Section("same", rows[last:], [])]
        else:
            rows = [
                (None if i is None else i + i1, None if j is None else j + j1)
                for i, j in align(left[i1:i2], right[j1:j2])
            ]
            text = "\n".join(line for line in left[i1:i2] + right[j1:j2] if line in known)
            sections.append(
                Section("change", rows, [why for piece, why in REASONS.items() if piece in text])
            )
    return [section for section in sections if section.rows]


def number_notes(sections: list[Section]) -> list[tuple[int | None, Section]]:
    """Each section with the number of its note; none where there is nothing to say, or nothing new since the change before."""
    numbered, said, number = [], [], 0
    for section in sections:
        new = bool(section.reasons) and section.reasons != said
        number += new
        said = section.reasons if section.kind == "change" else said
        numbered.append((number if new else None, section))
    return numbered


def changed_words(left: str | None, right: str | None) -> tuple[list[slice], list[slice]]:
    """The parts of two lines that differ; none where a line stands alone, or where most of it differs."""
    if left is None or right is None or match_words(left, right).ratio() < 0.5:
        return [], []
    a, b = words(left), words(right)
    different = [
        opcode for opcode in match_words(left, right).get_opcodes() if opcode[0] != "equal"
    ]
    return (
        [slice(a[i1].start(), a[i2 - 1].end()) for _, i1, i2, _, _ in different if i1 < i2],
        [slice(b[j1].start(), b[j2 - 1].end()) for _, _, _, j1, j2 in different if j1 < j2],
    )


def summary(lines: list[str]) -> str:
    """What is folded away: how much, and which functions begin there."""
    names = [found[1] for line in lines if (found := re.match(r"(?:def|class) (\w+)", line))]
    return f"{len(lines)} lines that are the same" + (f": {', '.join(names)}" if names else "")


def both(numbers: tuple[int | None, int | None], left: list, right: list) -> tuple:
    """What stands in a row, left and right."""
    return tuple(None if n is None else side[n] for n, side in zip(numbers, (left, right)))


# ----------------------------------------------------------------------------------------------------------- in the terminal

SIDES = (
    "black on #cfe0ff",
    "black on #ffe0c2",
)  # an own background, so that it can be read on light and dark
WORDS = ("bold black on #8fb4ff", "bold black on #ffb36b")


def show(left: list[str], right: list[str], names: tuple[str, str], context: int) -> None:
    """What differs, with the lines around it."""
    console = Console(highlight=False)

    def print_rows(rows):
        table = Table.grid(padding=(0, 1), expand=True)
        for width, ratio in (4, None), (None, 1), (1, None), (4, None), (None, 1):
            table.add_column(
                width=width, ratio=ratio, overflow="fold", justify="right" if width == 4 else "left"
            )
        for row in rows:
            table.add_row(*row)
        console.print(table)

    print_rows([("", Text(names[0], "bold"), "", "", Text(names[1], "bold"))])
    for number, section in number_notes(compare(left, right, context)):
        if section.kind == "fold":
            console.print(Text(f"\n     ⋯ {summary([left[i] for i, _ in section.rows])}\n", "dim"))
            continue
        if number:
            console.print(Text(f"  {number}  {' '.join(section.reasons)}", "bold italic"))
        rows = []
        for numbers in section.rows:
            lines = both(numbers, left, right)
            texts = [Text(line or "") for line in lines]
            sign = (
                " "
                if section.kind == "same"
                else "|"
                if None not in lines
                else ">"
                if lines[0] is None
                else "<"
            )
            if section.kind == "change":
                for text, style, word, parts in zip(texts, SIDES, WORDS, changed_words(*lines)):
                    text.stylize(style)
                    for part in parts:
                        text.stylize(word, part.start, part.stop)
            digits = [Text("" if n is None else str(n + 1), "dim") for n in numbers]
            rows.append((digits[0], texts[0], sign, digits[1], texts[1]))
        print_rows(rows)


# ---------------------------------------------------------------------------------------------------------------- as a page

# few colours, by the broad kinds of Python's words
KINDS = {Comment: "c", String: "s", Keyword: "k", Operator.Word: "k", Number: "n"}
KINDS |= {Name.Function: "f", Name.Class: "f", Name.Decorator: "d", Name.Builtin: "b"}


def kinds_of(lines: list[str]) -> list[list[str]]:
    """For each line the kind of each of its characters."""
    tokens = pygments.lex("\n".join(lines), PythonLexer(stripnl=False))
    kinds = [
        next((kind for token, kind in KINDS.items() if has in token), "")
        for has, text in tokens
        for _ in text
    ]
    ends = [0]
    for line in lines:
        ends.append(ends[-1] + len(line) + 1)
    return [kinds[begin : end - 1] for begin, end in zip(ends, ends[1:])]


def paint(line: str, kinds: list[str], marks: list[slice]) -> Markup:
    """A line as HTML, coloured by kind, its marked parts in <mark>."""
    marked = [False] * len(line)
    for part in marks:
        marked[part] = [True] * (part.stop - part.start)
    html = Markup()
    for (kind, mark), run in groupby(zip(line, kinds, marked), key=lambda character: character[1:]):
        text = "".join(character for character, *_ in run)
        piece = Markup('<b class="{}">{}</b>').format(kind, text) if kind else Markup.escape(text)
        html += Markup("<mark>{}</mark>").format(piece) if mark else piece
    return html


def render(left: list[str], right: list[str], names: tuple[str, str], context: int) -> str:
    """The page: both files as a whole."""
    kinds = kinds_of(left), kinds_of(right)
    sections = []
    for number, section in number_notes(compare(left, right, context)):
        rows = []
        for numbers in section.rows:
            marks = (
                changed_words(*both(numbers, left, right)) if section.kind == "change" else ([], [])
            )
            row = []
            for n, lines, kind, mark in zip(numbers, (left, right), kinds, marks):
                indent = None if n is None else len(lines[n]) - len(lines[n].lstrip())
                row.append(
                    None
                    if n is None
                    else {"n": n + 1, "indent": indent, "html": paint(lines[n], kind[n], mark)}
                )
            rows.append(row)
        fold = summary([left[i] for i, _ in section.rows]) if section.kind == "fold" else None
        sections.append(
            {
                "kind": section.kind,
                "number": number,
                "reasons": section.reasons,
                "rows": rows,
                "fold": fold,
            }
        )
    same = sum(len(section["rows"]) for section in sections if section["kind"] != "change")
    return page(
        "diff.html", names=names, sections=sections, same=same, counts=(len(left), len(right))
    )


def main(args: Args) -> None:
    check_ranges(args, zero=("context",))
    if args.all:
        for pair in PAIRS:
            names = tuple(f"{script}.py" for script in pair)
            text = render(*(read_lines(str(REPO / name)) for name in names), names, args.context)
            write_page(str(REPO / "docs" / "diffs" / f"{'--'.join(pair)}.html"), text)
        return
    if len(args.scripts) != 2:
        fail(f"{len(args.scripts)} files named; name the two to compare, or pass --all")
    left, right = map(read_lines, args.scripts)
    if args.html:
        write_page(args.html, render(left, right, args.scripts, args.context))
    elif left == right:
        print(f"{args.scripts[0]} and {args.scripts[1]} are the same")
    else:
        show(left, right, args.scripts, args.context)


if __name__ == "__main__":
    run_command(main, tyro.cli(Args, description=__doc__))
