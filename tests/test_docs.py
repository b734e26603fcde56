"""What the pages point at is there, their commands parse, and their examples do what they say."""

import ast
import importlib
import re
import shlex

import pytest
import tyro
from accelerate.commands.launch import launch_command_parser

from tests.conftest import REPO, SCRIPTS

PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")])
PROGRAMS = {f"{script}.py": script for script in SCRIPTS}
PROGRAMS |= {"tools/diff.py": "tools.diff", "tools/report.py": "tools.report"}
PROGRAMS |= {"-m prepare": "prepare.__main__", "-m paper frontier": "paper.frontier"}
PROGRAMS |= {"-m paper board": "paper.board", "-m paper optimum": "paper.optimum"}
PROGRAMS |= {"-m paper page": "paper.page", "-m paper run": "paper.page:RunArgs"}
BENCHMARKS = [path.stem for path in (REPO / "benchmarks").glob("*.py")]
PROGRAMS |= {f"benchmarks/{name}.py": f"benchmarks.{name}" for name in BENCHMARKS}
OLD = "--start", "--judge", "--save-stream", "--sample-ahead", "--track", "--precision", "--device"
OLD += "--gradient-accumulation-steps", "--compile", "embedded world", "opponent", "exact rule"
LOSSES = "ipo", "dpo", "slic", "bo2", "rloo"
NEW_LOSS = re.compile(r"\bmine_online\.py")  # docs/your-loss.md makes it
# names of other projects and of their data
OTHERS = "cpo_alpha dpo_trainer.py gradient_accumulation_steps label_smoothing loss_type max_length"
OTHERS += " max_new_tokens output_dir report_to resume_from_checkpoint save_steps score_chosen"
OTHERS += " num_train_epochs peft_config precompute_ref_log_probs ref_model sync_ref_model use_vllm"
OTHERS = set(f"{OTHERS} OMP_NUM_THREADS RSOLoss Trainer generate".split())
SKIP = ".venv", "tests", "runs", "setups"
SOURCES = [path for path in REPO.rglob("*.py") if path.relative_to(REPO).parts[0] not in SKIP]
SOURCES.append(REPO / "tests/frozen/reference.json")  # what a run writes
KNOWN = set(re.findall(r"\w+", "\n".join(path.read_text() for path in SOURCES))) | OTHERS
KNOWN |= {f"{name}_ground_truth_score" for name in ("chosen", "rejected")}
for path in REPO.glob("tests/*.py"):
    KNOWN |= {
        path.stem,
        *re.findall(r"^(?:def )?(test_\w+|[A-Z_]+)(?:\(| = )", path.read_text(), re.M),
    }


def arguments(program: str) -> type:
    module, _, name = PROGRAMS[program].partition(":")
    return getattr(importlib.import_module(module), name or "Args")


def flags() -> set[str]:
    """All that the programs and accelerate's launcher know."""
    known = set(launch_command_parser()._option_string_actions) | {"--help", "--logdir"}
    for program in PROGRAMS:
        fields = arguments(program).__dataclass_fields__
        known |= {"--" + field.replace("_", "-") for field in fields}
    return known


def anchors(page) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in headings}


def commands(page) -> list[list[str]]:
    """The words of each command of python, accelerate or make, in blocks and in backticks."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ {4,}(.+)$", text, re.M) + re.findall(r"`((?:python|make) [^`]+)`", text)
    lines = [line for line in lines if re.match(r"(\w+=\S+ )*(python|accelerate|make) ", line)]
    parts = [part for line in lines for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [[word for word in part if not re.match(r"[A-Z_]+=", word)] for part in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        if not target.startswith("http"):
            assert goal.exists(), target
            assert not anchor or anchor in anchors(goal), target


def test_the_index_has_every_page():
    docs = REPO / "docs"
    pages = {str(path.relative_to(docs)) for path in [*docs.glob("*.md"), *docs.glob("diffs/*")]}
    assert set(re.findall('href="(.+?)"', (docs / "index.html").read_text())) == pages


def words(page) -> int:
    """Words of prose and tables, without fenced blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def test_pages_are_short():
    assert words(REPO / "README.md") <= 700
    assert len((REPO / "docs/findings.md").read_text().splitlines()) <= 350
    counted = {page.stem: words(page) for page in PAGES if page.parent.name == "docs"}
    assert sum(counted.values()) <= 15_000
    assert max(count for page, count in counted.items() if page != "findings") <= 1100


def test_every_picture_is_on_a_page():
    text = "\n".join(page.read_text() for page in PAGES)
    assert [path.name for path in (REPO / "docs/pictures").iterdir() if path.name not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_exist(page):
    """Flags, tests, files, and whatever stands in backticks alone or before a bracket."""
    text = page.read_text()
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) - flags() == set()
    named = re.findall(r"`([A-Za-z]\w*[A-Za-z0-9])(?:`|\()", text)
    assert {*named, *re.findall(r"\btest_\w+", text)} - KNOWN == set()
    files = re.findall(r"`((?:\w+/)*\w+\.(?:py|md|toml))", NEW_LOSS.sub("", text))
    folders = REPO, page.parent
    missing = [name for name in files if not any((folder / name).exists() for folder in folders)]
    assert set(missing) <= OTHERS
    assert [name for name in OLD if name in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page):
    targets = re.findall(r"^([\w-]+):", (REPO / "Makefile").read_text(), re.M)
    for program, *words in commands(page):
        if program == "make":
            assert set(words) <= set(targets), words
            continue
        if program == "accelerate":
            launched = launch_command_parser().parse_args(words[1:])
            words = [launched.training_script, *launched.training_script_args]
        if words[:2] == ["-m", "pytest"]:
            assert all((REPO / path).exists() for path in words[2:]), words
            continue
        (name,) = [key for key in PROGRAMS if words[: len(key.split())] == key.split()]
        if "--help" not in words:
            tyro.cli(arguments(name), args=words[len(name.split()) :])


def test_the_difference_on_the_front_page_is_the_difference():
    shown = re.search(r"```diff\n(.+?)\n```", (REPO / "README.md").read_text(), re.S)[1]
    offline, online = (
        {line.strip() for line in (REPO / f"ipo_{side}.py").read_text().splitlines()}
        for side in ("offline", "online")
    )
    for line in shown.splitlines():
        own, other = (offline, online) if line[0] == "-" else (online, offline)
        assert line[1:].strip() in own - other, line


def test_what_was_found_is_on_the_findings_page():
    """Each mean with its interval, in README and on the pages of the algorithms."""
    number, page = r"[+-]?\d\.\d{3}", (REPO / "docs/findings.md").read_text()
    for path in [REPO / "README.md", *(REPO / f"docs/{loss}.md" for loss in LOSSES)]:
        told = re.findall(rf"{number} \[{number}, {number}\]", " ".join(path.read_text().split()))
        assert told and [cell for cell in told if cell not in page] == [], path.name


EXAMPLES = (REPO / "docs/copy.md").read_text().split("\n## ")
EXAMPLES = {part.split("\n")[0]: part for part in EXAMPLES if "```python" in part}


def copied(text: str) -> str:
    """The functions that a part of docs/copy.md names, behind a script's imports of libraries."""
    pieces = ["import torch", "from torch.nn.utils.rnn import pad_sequence"]
    pieces.append("from transformers import DynamicCache")
    for path, names in re.findall(r"From `(\w+\.py)`: ([`\w, ]+)", text):
        source = (REPO / path).read_text()
        functions = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
        for name in re.findall(r"\w+", names):
            node, lines = functions[name], source.splitlines()
            first = min([node.lineno, *(part.lineno for part in node.decorator_list)])
            pieces.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n\n\n".join(pieces)


@pytest.mark.parametrize("heading", EXAMPLES)
def test_what_is_copied_does_what_the_page_shows(heading, capsys):
    (use,) = re.findall(r"^```python\n(.*?)^```$", EXAMPLES[heading], re.M | re.S)
    exec(compile(f"{copied(EXAMPLES[heading])}\n\n\n{use}", "copy.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"# prints (.+)$", use, re.M)
