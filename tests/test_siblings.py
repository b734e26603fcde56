"""The scripts are meant to be read side by side: what they share is the same to the byte, what differs stays small."""

import ast
import difflib
import itertools
import re

import pytest

from tests.conftest import REPO, SCRIPTS

FUNCTIONS = (
    "sample",
    "response_states",
    "sequence_logprob",
    "preference_loss",
    "kl_to_sft",
    "evaluate",
    "main",
)


def lines_of(script):
    return (REPO / f"{script}.py").read_text().splitlines()


def changed_lines(a, b):
    """(difflib's line ratio, lines only in a, lines only in b)."""
    matcher = difflib.SequenceMatcher(None, lines_of(a), lines_of(b), autojunk=False)
    changes = [
        (i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal"
    ]
    return matcher.ratio(), sum(c for c, _ in changes), sum(c for _, c in changes)


def functions_of(script):
    """{name: source} of a script's functions."""
    source = "\n".join(lines_of(script))
    return {
        n.name: ast.get_source_segment(source, n)
        for n in ast.parse(source).body
        if isinstance(n, ast.FunctionDef)
    }


def test_there_are_scripts_to_compare():
    assert {
        f"{loss}_{mode}" for loss in ("bo2", "dpo", "ipo", "slic") for mode in ("offline", "online")
    } <= set(SCRIPTS)


@pytest.mark.parametrize("a, b", list(itertools.combinations(SCRIPTS, 2)))
def test_diff_budget(a, b):
    (loss_a, mode_a), (loss_b, mode_b) = a.split("_"), b.split("_")
    ratio, minus, plus = changed_lines(a, b)
    print(f"{a} -> {b}: ratio {ratio:.3f}, -{minus} +{plus}")
    if loss_a == loss_b:
        assert ratio >= 0.85 and minus <= 50 and plus <= 50
    elif mode_a == mode_b:
        assert minus <= 10 and plus <= 10


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_the_functions_a_reader_copies(script):
    assert set(FUNCTIONS) <= set(functions_of(script))


def test_shared_functions_are_the_same_to_the_byte():
    """Whatever two scripts both have is one text in all of them, but for the loss and the loop, which are the algorithm."""
    functions = {script: functions_of(script) for script in SCRIPTS}
    names = set.union(*map(set, functions.values())) - {"preference_loss", "main"}
    assert {"sample", "response_states", "sequence_logprob", "kl_to_sft", "evaluate"} <= names
    for name in names:
        assert len({own[name] for own in functions.values() if name in own}) == 1, name


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_one_loop_for_all_losses(mode):
    assert (
        len({functions_of(script)["main"] for script in SCRIPTS if script.endswith(f"_{mode}")})
        == 1
    )


@pytest.mark.parametrize("loss", sorted({script.split("_")[0] for script in SCRIPTS}))
def test_one_loss_for_both_sides(loss):
    assert (
        len(
            {
                functions_of(script)["preference_loss"]
                for script in SCRIPTS
                if script.startswith(f"{loss}_")
            }
        )
        == 1
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_short_and_import_common_alone(script):
    source = lines_of(script)
    assert (
        len(source) <= 420 and sum(bool(re.match(r"\s*(if|elif)\b", line)) for line in source) <= 17
    )
    modules = {
        node.module
        for node in ast.walk(ast.parse("\n".join(source)))
        if isinstance(node, ast.ImportFrom)
    }
    own = {path.stem for path in REPO.glob("*.py")} | {"prepare", "paper"}
    assert {module for module in modules if module.split(".")[0] in own} == {"common"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_argument_is_explained(script):
    """Each field of Args is followed by a string that says what it is."""
    source = ast.parse("\n".join(lines_of(script)))
    body = next(
        node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "Args"
    ).body
    for field, text in zip(body[::2], body[1::2], strict=True):
        assert (
            isinstance(field, ast.AnnAssign)
            and isinstance(text.value.value, str)
            and len(text.value.value) > 15
        )
