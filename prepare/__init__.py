"""Make a setup, the folder that every script starts from. See `python -m prepare --help`."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: str | Path):
    """A folder that has its name only when it is complete: written aside, renamed at the end."""
    path = Path(path)
    aside = path.with_name(f"{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(path)


def write_rows(path: Path, rows) -> None:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
