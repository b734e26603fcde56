"""Two scripts as one page, and finished runs as one page. What both need: to write a page that needs nothing beside it."""

from pathlib import Path

import jinja2

PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # what comes from scripts and runs is text, whatever it looks like
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(template: str, **values) -> str:
    """A page of HTML with its styles in it; what it shows are the values."""
    return PAGES.get_template(template).render(**values) + "\n"


def write_page(out: str, text: str) -> None:
    """Write it, with the folders on its way."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(text, encoding="utf-8")
    print(f"wrote {out}")
