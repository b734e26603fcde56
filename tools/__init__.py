"""Two scripts as one page, and runs as one page. Here: how a page is made that needs no network."""

from pathlib import Path

import jinja2

PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # what comes from scripts and runs is text, whatever it looks like
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(out: str | Path, template: str, **values) -> None:
    """Write a page of HTML with its styles in it, and the folders on its way."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    text = PAGES.get_template(template).render(**values) + "\n"
    Path(out).write_text(text, encoding="utf-8")
    print(f"wrote {out}")
