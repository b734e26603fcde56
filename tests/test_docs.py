"""What the pages point at is there, and what they tell a reader to copy or to call does what they say.

python -m tests.test_docs      renews the numbers in links to lines of code
"""

import difflib
import gzip
import importlib
import json
import re
import shlex
import sys

import datasets
import pytest
import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests.conftest import REPO, SHARED, needs_shared, read_jsonl, tiny_model

PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md")])

# A link to a line of code is written [`code`](../script.py#L12). Its text is a piece of that line which is found on no other
# line of the file, so that the number follows from the text: the test says the right one, and `python -m tests.test_docs`
# writes it. If the text is gone, or is found twice, only a person can choose another piece.
LINE_LINK = re.compile(r"\[`([^`\n]+)`\]\(([^)\s#]+)#L(\d+)\)")


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def lines_with(code, path):
    """The numbers of the lines of a file that hold this piece of code."""
    return [number for number, line in enumerate(path.read_text().splitlines(), 1) if code in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            goal = (page.parent / path).resolve() if path else page
            assert goal.exists(), target
            assert not anchor or goal.suffix != ".md" or anchor in anchors(goal), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_lines_show_what_they_say(page):
    text, wrong = page.read_text(), []
    for code, path, number in LINE_LINK.findall(text):
        found = lines_with(code, page.parent / path)
        if found != [int(number)]:
            right = (
                f"line {found[0]}"
                if len(found) == 1
                else f"lines {found}: choose a piece that stands on one line"
            )
            wrong.append(f"{path}#L{number}: `{code}` is on {right}")
    assert len(LINE_LINK.findall(text)) == len(re.findall(r"\.py#", text)), (
        "a link to code is [`code`](path.py#L12)"
    )
    assert not wrong, "\n".join([*wrong, "`python -m tests.test_docs` renews the numbers"])


def renew_line_numbers():
    """Write the right number into every link to a line whose text is found on exactly one line."""

    def renewed(link):
        found = lines_with(link[1], page.parent / link[2])
        return f"[`{link[1]}`]({link[2]}#L{found[0] if len(found) == 1 else link[3]})"

    for page in PAGES:
        text = page.read_text()
        if (new := LINE_LINK.sub(renewed, text)) != text:
            page.write_text(new)
            print(f"renewed {page}")


def test_the_difference_on_the_front_page_is_the_difference():
    shown = re.search(r"```diff\n(.+?)\n```", (REPO / "README.md").read_text(), re.S)[1]
    files = [(REPO / f"ipo_{side}.py").read_text().splitlines() for side in ("offline", "online")]
    assert f"\n{shown}\n" in "\n".join(difflib.unified_diff(*files, n=0, lineterm=""))


def test_the_readme_says_what_was_found():
    """The rows of README's table of findings, and each mean with its interval, stand in docs/findings.md to the letter."""
    rows = [
        line
        for line in (REPO / "README.md").read_text().splitlines()
        if line.startswith("| **online ahead of")
    ]
    page = (REPO / "docs" / "findings.md").read_text()
    assert len(rows) >= 2 and all(row in page for row in rows)
    number = r"([+-]\d\.\d{3})"
    told = re.findall(
        rf"{number} \[{number}, {number}\]", " ".join((REPO / "README.md").read_text().split())
    )
    assert [said for said in told if "| {} | {} to {} |".format(*said) not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page):
    tests = {
        name
        for path in (REPO / "tests").glob("*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    files = {path.stem for path in (REPO / "tests").glob("*.py")}
    assert set(re.findall(r"\btest_\w+", page.read_text())) <= tests | files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_scripts_exist(page):
    text = page.read_text()
    for name in re.findall(r"python ((?:\w+/)*\w+\.py)", text):
        assert (REPO / name).is_file() or f"> {name}\n" in text, (
            name
        )  # or the page has it made just before


def sections(page):
    """{heading: text} of a page's parts."""
    _, *parts = re.split(r"^## (.+)$", (REPO / "docs" / page).read_text(), flags=re.M)
    return dict(zip(parts[::2], parts[1::2]))


# ---- docs/copy.md: in each part the blocks but the last are the head of copied.py, links joined by "to" are the lines that
# follow it, and the last block is what a reader's program does with them

COPIED = {
    heading: text
    for heading, text in sections("copy.md").items()
    if "copied" in text and "```python" in text
}


@pytest.mark.parametrize("heading", COPIED)
def test_what_is_copied_does_what_the_page_shows(heading, tmp_path, monkeypatch, capsys):
    *heads, use = re.findall(r"^```python\n(.*?)^```$", COPIED[heading], re.M | re.S)
    lines = []
    for _, path, first, _, end_path, last in re.findall(
        LINE_LINK.pattern + r"\s+to\s+" + LINE_LINK.pattern, COPIED[heading]
    ):
        assert path == end_path
        lines += (REPO / "docs" / path).read_text().splitlines()[int(first) - 1 : int(last)] + [
            "",
            "",
        ]
    assert 30 < len(lines) < 110
    (tmp_path / "copied.py").write_text("\n".join([*heads, *lines]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "copied", raising=False)
    exec(compile(use, "docs/copy.md", "exec"), {"__name__": "__main__"})
    printed = re.findall(r"# prints (.+)$", use, re.M)
    assert capsys.readouterr().out.splitlines() == printed
    del sys.modules["copied"]


# ---- docs/yours.md: its commands, word for word, on stand-ins that lie where the Hub's names point to


def byte_tokenizer(texts, **special):
    """A small byte-level BPE, as GPT-NeoX, Qwen and SmolLM have it, with these special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    names = list(dict.fromkeys([*special.values(), "<|endoftext|>"]))
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1200, special_tokens=names, **options)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )


def stand_in(name, family, tokenizer, preference_model=False):
    """A random model of two layers under a Hub name, seen from the current folder."""
    model = tiny_model(family, dtype=torch.float32, vocab_size=len(tokenizer))
    model.config.max_position_embeddings, model.config.eos_token_id = 2048, tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(name)
    if preference_model:
        AutoModelForSequenceClassification.from_pretrained(name, num_labels=1).save_pretrained(name)
    tokenizer.save_pretrained(name)


def short_rows(name, count):
    """The shortest rows of a shared file, as they are."""
    with gzip.open(SHARED / "data" / name, "rt") as file:
        return [json.loads(line) for line in sorted(file, key=len)[:count]]


CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tldr(folder):
    """Strings with a prompt column, parquet, no padding token: trl-lib/tldr-preference and Pythia."""
    subjects, ends = (
        ("my cat", "a job", "the rent", "an exam"),
        (" Should I go?", " What now?", " I left."),
    )
    rows = [
        {
            "prompt": f"SUBREDDIT: r/advice\n\nTITLE: About {a}\n\nPOST: It is about {a} and {b}. {a} again.\n\nTL;DR:",
            "chosen": f" {a} and {b}.{end}",
            "rejected": f" {b}, {a}, {a} and all that.{end}",
        }
        for a in subjects
        for b in subjects
        for end in ends
    ]
    (folder / "trl-lib" / "tldr-preference" / "data").mkdir(parents=True)
    data = folder / "trl-lib" / "tldr-preference" / "data"
    datasets.Dataset.from_list(rows).to_parquet(data / "train-00000-of-00001.parquet")
    datasets.Dataset.from_list(rows[:4]).to_parquet(data / "validation-00000-of-00001.parquet")
    tokenizer = byte_tokenizer(
        [row["prompt"] + row["chosen"] for row in rows], eos_token="<|endoftext|>"
    )
    for name in ("pythia-410m", "pythia-1.4b"):
        stand_in(f"EleutherAI/{name}", "gpt_neox", tokenizer)


def hh(folder):
    """Dialogues as strings with the prompt inside, real rows with real dirt, a template that must not be used."""
    rows = short_rows("hh-rlhf/harmless-base-test.jsonl.gz", 60)
    (folder / "data" / "hh-rlhf" / "helpful-base").mkdir(parents=True)
    with gzip.open(folder / "data" / "hh-rlhf" / "helpful-base" / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    tokenizer = byte_tokenizer(
        [row["chosen"] for row in rows], eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    for name in ("Qwen2.5-0.5B", "Qwen2.5-1.5B"):
        stand_in(f"Qwen/{name}", "qwen2", tokenizer)


def ultrafeedback(folder):
    """Conversations with the prompt inside both, and scores; an instruct model's template, padding that is its end token."""
    rows = [
        {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        | {"score_chosen": 8.0, "score_rejected": 5.5}
        for row in short_rows("oasst/pairs.jsonl.gz", 60)
    ]
    (folder / "trl-lib" / "ultrafeedback_binarized" / "data").mkdir(parents=True)
    data = folder / "trl-lib" / "ultrafeedback_binarized" / "data"
    datasets.Dataset.from_list(rows).to_parquet(data / "train-00000-of-00001.parquet")
    texts = [message["content"] for row in rows for message in row["chosen"]]
    special = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    tokenizer = byte_tokenizer(texts, **special)
    tokenizer.chat_template = CHATML
    for name in ("SmolLM2-135M-Instruct", "SmolLM2-360M-Instruct"):
        stand_in(f"HuggingFaceTB/{name}", "llama", tokenizer)
    other = byte_tokenizer(
        texts[::-2], eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    other.chat_template = CHATML.replace("You help.", "")
    stand_in("Skywork/Skywork-Reward-V2-Qwen3-0.6B", "qwen2", other, preference_model=True)


YOURS = {
    heading: text
    for heading, text in sections("yours.md").items()
    if "    python -m prepare" in text
}
STAND_INS = {"TL;DR": tldr, "HH": hh, "UltraFeedback": ultrafeedback}
FEWER = {
    "policy_steps": 1,
    "steps": 1,
    "eval_every": 1,
    "eval_prompts": 2,
    "kl_prompts": 2,
    "batch_size": 2,
    "device": "cpu",
}
FEWER |= {
    "sft_steps": 1,
    "golden_steps": 1,
    "proxy_steps": 1,
    "gradient_accumulation_steps": 1,
    "max_response_tokens": 96,
}


PROGRAMS = {  # what stands behind `python`, or `python -m`: module, its arguments, its function
    "prepare": ("prepare.__main__", "Args", "main"),
    "prepare.preference_model train": ("prepare.preference_model", "Train", "train"),
    "ipo_offline.py": ("ipo_offline", "Args", "main"),
    "ipo_online.py": ("ipo_online", "Args", "main"),
    "paper frontier": ("paper.frontier", "Args", "main"),
}


def commands(text):
    """The words of each `python ...` command in a page's indented blocks."""
    blocks = "\n".join(re.findall(r"^    (.*)$", text, re.M)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in blocks.splitlines() if line.startswith("python ")]


@pytest.mark.parametrize(
    "name", ["TL;DR", *(pytest.param(name, marks=needs_shared) for name in ("HH", "UltraFeedback"))]
)
def test_the_examples_run_on_data_and_models_of_their_form(name, tmp_path, monkeypatch):
    """Every command as it stands there, with fewer and smaller steps."""
    (text,) = (text for heading, text in YOURS.items() if name in heading)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    STAND_INS[name](tmp_path)
    for words in commands(text):
        words = words[1:] if words[0] == "-m" else words
        monkeypatch.setattr(sys, "argv", words[:1])
        (known,) = (known for known in PROGRAMS if words[: len(known.split())] == known.split())
        module, arguments, main = PROGRAMS[known]
        module = importlib.import_module(module)
        args = tyro.cli(getattr(module, arguments), args=words[len(known.split()) :])
        for field, value in FEWER.items():
            if getattr(
                args, field, 0
            ):  # what is 0 stays 0: a model that is its own SFT, a golden one that is one already
                setattr(args, field, value)
        getattr(module, main)(args)
    runs = sorted((tmp_path / "runs").glob("*/*/evals.jsonl"))
    assert len(runs) >= 2 and list(tmp_path.glob("runs/*/*.png"))
    for path in runs:
        rows = read_jsonl(path)
        assert (
            [row["step"] for row in rows] == [0, 1]
            and rows[0]["kl"] == 0
            and 0 <= rows[1]["win_rate"] <= 1
        )
        prompt = read_jsonl(path.parent / "responses" / "0.jsonl")[0]["prompt"]
        ends = {
            "TL;DR": "\n\nTL;DR:",
            "HH": "\n\nAssistant:",
            "UltraFeedback": "<|im_start|>assistant\n",
        }
        assert prompt.endswith(ends[name]) and prompt.count("<|im_start|>system") == (
            name == "UltraFeedback"
        )


if __name__ == "__main__":
    renew_line_numbers()
