"""Make a setup, the folder that every script starts from. See `python -m prepare --help`."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from common import load_pairs


@contextmanager
def whole_folder(path: str | Path):
    """A folder that has its name only when it is complete: written aside, renamed at the end."""
    aside = Path(f"{path}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(path)


def write_rows(path: Path, rows) -> None:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))


def load_split(dataset: str, split: str, tokenizer, args) -> list[dict]:
    """The usable pairs of one split of a dataset, as ids; args has the limits of their length."""
    limits = args.max_prompt_tokens, args.max_response_tokens
    return load_pairs(dataset, tokenizer, limits, args.on_bad_row, split=split)


def save_model(out: str, model, tokenizer, file: str, rows: list[dict]) -> None:
    """A folder with a model, its tokenizer, and what was measured of it in a file."""
    with whole_folder(out) as folder:
        write_rows(folder / file, rows)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
