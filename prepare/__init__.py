"""Makes what every script starts from: the embedded world, or your own model and data. See `python -m prepare --help`."""

import shutil
from contextlib import contextmanager
from pathlib import Path

from common import fail


@contextmanager
def finished_folder(path: str):
    """A folder that appears under its name only when it is complete: written aside, renamed at the end."""
    path = Path(path)
    if path.exists():
        fail(f"{path}: is there already; remove it or name another folder")
    aside = path.with_name(f"{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    aside.rename(path)
