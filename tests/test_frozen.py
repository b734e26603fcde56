"""What a user has, frozen: what each script writes for one small setup, and how it reads data.

These tests know the command line and the files alone. tests/frozen/ has the setup, random models
of a few letters, and the reference, made by models in float64.

`python -m tests.test_frozen` writes the reference again: only where results are meant to change.
"""

import json
import tempfile
from pathlib import Path

import datasets
import pytest

from tests.conftest import call, read_jsonl, write_jsonl

FROZEN = Path(__file__).resolve().parent / "frozen"
SETUP, POLICY = FROZEN / "setup", FROZEN / "setup" / "sft"
REFERENCE = FROZEN / "reference.json"
FILES = {
    "metrics": "metrics.jsonl",
    "evaluations": "evals.jsonl",
    "responses at 0": "responses/0.jsonl",
    "responses at 10": "responses/10.jsonl",
    "pairs": "online_pairs/train.jsonl",
}
OFFLINE = "bo2_offline", "dpo_offline", "ipo_offline", "slic_offline"
ONLINE = "bo2_online", "dpo_online", "ipo_online", "slic_online", "ipo_hybrid"
TEXTS = "baseline", "samples"  # columns of an evaluation that are no numbers
NEW = {"agreement", "agreement_stderr"}  # columns that the reference does not have
# These go through fp32 on their way to the file, whatever the models are: fewer digits count.
ROUNDED = "kl", "kl_stderr", "margin", "win_rate_margin", "proxy_win_rate_margin"

TRAINING = "--steps", 10, "--batch-size", 6, "--learning-rate", 1e-3, "--seed", 3
TRAINING += "--eval-every", 10, "--eval-at", 10, "--eval-prompts", 8, "--kl-prompts", 8
TRAINING += "--max-prompt-tokens", 12, "--max-response-tokens", 8

# One row a step and no learning: a line of the metrics is a fingerprint of one row's ids.
READING = "--batch-size", 1, "--learning-rate", 1e-30, "--seed", 3
READING += "--eval-prompts", 1, "--kl-prompts", 1
READING += "--max-prompt-tokens", 80, "--max-response-tokens", 8
FINGERPRINT = "logps/chosen", "logps/rejected", "ties"

COLUMNS = "prompt", "chosen", "rejected", "chosen_finished", "rejected_finished", "margin"
PLAIN = [
    ("tell a", " tale", " lie.", True, True, 0.5),
    ("no ", "more", "less", False, True, 0.0),
    ("tell a", "gain", " s ", True, False, 2.0),
    ("\n: Hi!", " Ah", "\nb", False, False, 1.5),
]
PLAIN = [dict(zip(COLUMNS, row, strict=True)) for row in PLAIN]


HEADS = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "\n\nHuman: a test\n\nAssistant:"
IMPLICIT = [
    {"chosen": HEADS[0] + " go on", "rejected": HEADS[0] + " stop"},
    {"chosen": HEADS[1] + "no", "rejected": HEADS[1] + " a\n\nb"},
]
# For a tokenizer that puts <s> and a word mark before a text: a response behind a prompt has none.
MARKED = [{"prompt": "ab ac", "chosen": "cd", "rejected": " a b"}]
FORMS = {"plain": PLAIN, "implicit": IMPLICIT, "marked": MARKED}
CASES = *OFFLINE, *ONLINE, "plain, csv", "plain, ids", *FORMS


def write(rows, kind, folder):
    """The rows in a file of this kind; returns its path."""
    path = folder / "data.jsonl"
    if kind == "csv":
        path = path.with_suffix(".csv")
        datasets.Dataset.from_list(rows).to_csv(path)
        return path
    if kind == "ids":
        ids = json.loads((POLICY / "tokenizer.json").read_text())["model"]["vocab"]
        rows = [{**row} for row in rows]
        for row in rows:
            row["prompt_ids"] = [ids[letter] for letter in row.pop("prompt")]
            for name in ("chosen", "rejected"):
                end = [ids["<eos>"]] * row.pop(f"{name}_finished")
                row[f"{name}_ids"] = [ids[letter] for letter in row.pop(name)] + end
    return write_jsonl(path, rows)


def run(script, out, *words):
    """Run a script in float64; returns the rows of each of FILES, without TEXTS."""
    words += ("--save-pairs",) * (script in ONLINE)
    call("tests/in_double.py", script, *words, "--out", out)
    assert json.loads((out / "policy" / "config.json").read_text())["dtype"] == "float64"
    files = {name: read_jsonl(out / file) for name, file in FILES.items() if (out / file).exists()}
    for row in files["evaluations"]:
        for name in TEXTS:
            assert row.pop(name)
    for number, row in enumerate(files.get("pairs", [])):  # added after the freeze
        assert row.pop("step") == number // words[words.index("--batch-size") + 1]
    return files


def results(case, folder):
    """{name in the reference: rows} of a script, or of a form of data that a script reads."""
    if case not in FORMS and "," not in case:
        files = run(case, folder / "run", "--setup", SETUP, *TRAINING)
        return {f"{case}: {name}": rows for name, rows in files.items()}
    form, _, kind = case.partition(", ")
    rows = FORMS[form]
    words = ["--dataset", write(rows, kind, folder), "--steps", len(rows), *READING]
    model = FROZEN / "metaspace" if form == "marked" else POLICY
    files = run("ipo_offline", folder / "run", "--model", model, "--shuffle", "none", *words)
    return {form: [{name: row[name] for name in FINGERPRINT} for row in files["metrics"]]}


def check(value, kept, where, near=1e-9):
    """Floats are near to the reference's; all else is the same, the columns' names too."""
    if isinstance(kept, dict):
        assert value.keys() - NEW == kept.keys(), where
        for key in kept:
            near = 1e-6 if key in ROUNDED else 1e-9
            check(value[key], kept[key], f"{where}, {key}", near)
    elif isinstance(kept, list):
        assert len(value) == len(kept), where
        for i in range(len(kept)):
            check(value[i], kept[i], f"{where}, {i}", near)
    elif isinstance(kept, float):
        assert value == pytest.approx(kept, rel=near, abs=near), where
    else:
        assert value == kept, where


@pytest.fixture(scope="module")
def reference():
    return json.loads(REFERENCE.read_text())


@pytest.mark.parametrize("case", CASES)
def test_it_is_as_it_was(case, reference, tmp_path):
    name = case.partition(", ")[0]
    kept = {key: rows for key, rows in reference.items() if key.partition(": ")[0] == name}
    check(results(case, tmp_path), kept, case)


def make():
    """Write the reference: {name: rows}, a row a line."""
    kept = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            kept |= results(case, Path(folder))
    texts = {name: ",\n".join(map(json.dumps, rows)) for name, rows in kept.items()}
    lines = ",\n".join(f"{json.dumps(name)}: [\n{text}\n]" for name, text in texts.items())
    REFERENCE.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    make()
