"""What a user has, frozen: what each script writes for one small setup, and how it reads data.

These tests know the command line and the files alone. tests/frozen/ has the setup, random models
of a few letters, and the reference, made by models in float64. fp32 is held to the same numbers
more loosely, but has to sample the same tokens and give the same labels.

`python -m tests.test_frozen` writes the reference again: only where results are meant to change.
"""

import gzip
import json
import tempfile
from pathlib import Path

import datasets
import pytest

from tests.conftest import call, read_jsonl

FROZEN = Path(__file__).resolve().parent / "frozen"
REFERENCE = FROZEN / "reference.json"

# ---- what a user types and finds: a name that changes is changed here, and the numbers stay
SETUP_FLAG, MODEL_FLAG, DATA_FLAG, PAIRS_FLAG = "--setup", "--model", "--dataset", "--save-pairs"
SETUP, METASPACE = FROZEN / "setup", FROZEN / "metaspace"
POLICY = SETUP / "sft"
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

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}  # relative, or absolute
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


def said(role, text):
    return {"role": role, "content": text}


TALKS = [
    [said("user", "Hi, a dog!")],
    [said("user", "a"), said("assistant", "b"), said("user", "c d")],
    [said("assistant", "Hi."), said("user", "go on: a")],
]
HEADS = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "\n\nHuman: a test\n\nAssistant:"
IMPLICIT = [
    {"chosen": HEADS[0] + " go on", "rejected": HEADS[0] + " stop"},
    {"chosen": HEADS[1] + "no", "rejected": HEADS[1] + " a\n\nb"},
]
# For a tokenizer that puts <s> and a word mark before a text: a response behind a prompt has none.
MARKED = [
    {"prompt": "ab ac", "chosen": "cd", "rejected": " a b"},
]
KINDS = "jsonl", "jsonl.gz", "json", "csv", "parquet", "folder", "saved", "ids"
# {form: (name in the reference, rows, kind of file)}
FORMS = {kind: ("plain", PLAIN, kind) for kind in KINDS}
FORMS |= {"implicit": ("implicit", IMPLICIT, "jsonl"), "marked": ("marked", MARKED, "jsonl")}
PROMPTS = {
    "prompts": [{"prompt": text} for text in ("tell a", "no ", "\nb: Hi")],
    "prompts of talks": [{"prompt": talk} for talk in TALKS],
}


def write(rows, kind, folder):
    """The rows in a file, or a folder, of this kind; returns its path."""
    path, data = folder / f"data.{kind}", datasets.Dataset.from_list(rows)
    if kind == "ids":
        ids = json.loads((POLICY / "tokenizer.json").read_text())["model"]["vocab"]
        rows = [{**row} for row in rows]
        for row in rows:
            row["prompt_ids"] = [ids[letter] for letter in row.pop("prompt")]
            for name in ("chosen", "rejected"):
                end = [ids["<eos>"]] * row.pop(f"{name}_finished")
                row[f"{name}_ids"] = [ids[letter] for letter in row.pop(name)] + end
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "csv":
        data.to_csv(path)
    elif kind == "parquet":
        data.to_parquet(path)
    elif kind == "saved":
        data.save_to_disk(path)
    elif kind == "folder":
        path.mkdir()
        (path / "train.jsonl").write_text(text)
        (path / "test.jsonl").write_text(json.dumps(rows[-1]) + "\n")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(json.dumps(rows) if kind == "json" else text)
    return path


def run(script, precision, out, *words):
    """Run a script in this precision; returns the rows of each of FILES, without TEXTS."""
    command = ["tests/in_double.py", script] if precision == "float64" else [f"{script}.py"]
    call(*command, *words, *[PAIRS_FLAG] * (script in ONLINE), "--out", out)
    assert json.loads((out / "policy" / "config.json").read_text())["dtype"] == precision
    files = {name: read_jsonl(out / file) for name, file in FILES.items() if (out / file).exists()}
    for row in files["evaluations"]:
        for name in TEXTS:
            assert row.pop(name)
    for number, row in enumerate(files.get("pairs", [])):  # added after the freeze
        assert row.pop("step") == number // words[words.index("--batch-size") + 1]
    return files


def trained(script, precision, folder):
    return run(script, precision, folder / script, SETUP_FLAG, SETUP, *TRAINING)


def read(form, folder):
    """The fingerprints of rows in this form, read by an offline script."""
    _, rows, kind = FORMS[form]
    words = [DATA_FLAG, write(rows, kind, folder), "--shuffle", "none", "--steps", len(rows)]
    model = [MODEL_FLAG, METASPACE if form == "marked" else POLICY]
    files = run("ipo_offline", "float64", folder / form, *model, *words, *READING)
    return [{name: row[name] for name in FINGERPRINT} for row in files["metrics"]]


def read_prompts(form, folder):
    """The ids of prompts alone, read by an online script, in the order of its steps."""
    rows = PROMPTS[form]
    words = [SETUP_FLAG, SETUP, DATA_FLAG, write(rows, "jsonl", folder), "--steps", len(rows)]
    files = run("ipo_online", "float64", folder / form, *words, *READING)
    return [row["prompt_ids"] for row in files["pairs"]]


NEW = {"agreement", "agreement_stderr"}  # columns that the reference does not have


def check(value, kept, tolerance, where):
    """Floats are near to the reference's; all else is the same, the columns' names too."""
    if isinstance(kept, dict):
        assert value.keys() - NEW == kept.keys(), where
    if isinstance(kept, list):
        assert len(value) == len(kept), where
    if isinstance(kept, (dict, list)):
        for key in kept if isinstance(kept, dict) else range(len(kept)):
            near = max(tolerance, 1e-6) if key in ROUNDED else tolerance
            check(value[key], kept[key], near, f"{where}, {key}")
    elif isinstance(kept, float):
        assert value == pytest.approx(kept, rel=tolerance, abs=tolerance), where
    else:
        assert value == kept, where


@pytest.fixture(scope="module")
def reference():
    return json.loads(REFERENCE.read_text())


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("script", OFFLINE + ONLINE)
def test_a_run_writes_what_it_wrote(script, precision, reference, tmp_path):
    files = trained(script, precision, tmp_path)
    files = {f"{script}: {name}": rows for name, rows in files.items()}
    kept = {name: rows for name, rows in reference.items() if name.startswith(f"{script}: ")}
    check(files, kept, TOLERANCE[precision], "")


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_pairs_is_read_as_it_was(form, reference, tmp_path):
    check(read(form, tmp_path), reference[FORMS[form][0]], TOLERANCE["float64"], form)


@pytest.mark.parametrize("form", PROMPTS)
def test_prompts_alone_are_read_as_they_were(form, reference, tmp_path):
    check(read_prompts(form, tmp_path), reference[form], 0.0, form)


def make():
    """Write the reference: {name: rows}, a row a line."""
    kept = {}
    with tempfile.TemporaryDirectory() as folder:
        for script in OFFLINE + ONLINE:
            files = trained(script, "float64", Path(folder))
            kept |= {f"{script}: {name}": rows for name, rows in files.items()}
        for form in ("jsonl", "implicit", "marked"):
            kept[FORMS[form][0]] = read(form, Path(folder))
        kept |= {form: read_prompts(form, Path(folder)) for form in PROMPTS}
    texts = {name: ",\n".join(map(json.dumps, rows)) for name, rows in kept.items()}
    lines = ",\n".join(f"{json.dumps(name)}: [\n{text}\n]" for name, text in texts.items())
    REFERENCE.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    make()
