"""Fetches the documentation that the shipped model learned from, as plain text: Debian packages under free licences.

    python tools/tiny_v4_corpus.py corpus        then        python tools/train_tiny_v4.py --text corpus --out tiny

Needs apt-get (to download, not to install) and dpkg-deb; packages are as the system's sources have them. A tenth of the
shipped model's text is left out: the King James Bible and the Jargon File, which are packed in ways of their own.
"""

from __future__ import annotations

import gzip
import html
import re
import subprocess
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import click

# Package -> (licence, files that are documents).
PACKAGES = {
    "python3.11-doc": ("PSF-2.0", r"_sources/.*\.txt$"),
    "libpython3.11-stdlib": ("PSF-2.0", r"\.py$"),
    "python3-twisted": ("MIT", r"\.py$"),
    "python-sqlalchemy-doc": ("MIT", r"\.rst(\.txt)?$"),
    "cmake-doc": ("BSD-3-Clause", r"_sources/.*\.txt$"),
    "sphinx-doc": ("BSD-2-Clause", r"\.txt$"),
    "nodejs-doc": ("MIT", r"/api/.*\.md\.gz$"),
    "python-django-doc": ("BSD-3-Clause", r"\.html$"),
    "sqlite3-doc": ("public domain", r"\.html$"),
    "postgresql-doc-15": ("PostgreSQL", r"\.html$"),
    "apache2-doc": ("Apache-2.0", r"/manual/en/.*\.html$"),
    "rust-doc": ("MIT or Apache-2.0", r"html/(book|reference|nomicon|rustc|rustdoc)/.*\.html$"),
}
SKIPPED = re.compile(
    r"/tests?/|changelog|/license|genindex|search\.html|/encodings/|pydoc_data|/print\.html|all\.md"
)
MOST_BYTES = 11_000_000  # of a package


class Text(HTMLParser):
    """The words of a page, without scripts, navigation and the like; block elements end lines."""

    HIDDEN = frozenset({"script", "style", "nav", "head", "footer"})
    LINES = frozenset({"p", "div", "li", "tr", "br", "pre", "h1", "h2", "h3", "h4", "dt", "dd", "table"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in self.HIDDEN
        if tag in self.LINES:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(0, self.hidden - (tag in self.HIDDEN))
        if tag in self.LINES:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def text_of(path: Path) -> str:
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    text = raw.decode("utf-8", errors="ignore")
    if path.suffix == ".html":
        parser = Text()
        parser.feed(text)
        text = html.unescape("".join(parser.parts))
    text = text.replace("\r\n", "\n").replace("\t", "    ").replace("\xa0", " ").replace("\0", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def is_prose(text: str) -> bool:
    """Mostly letters, nearly all of them ASCII."""
    letters = sum(c.isalpha() or c == " " for c in text)
    return len(text) >= 400 and letters > 0.62 * len(text) and sum(c > "~" for c in text) < 0.01 * len(text)


def documents(folder: Path, pattern: str) -> Iterator[str]:
    total = 0
    for path in sorted(folder.rglob("*")):
        name = str(path)
        if (
            path.is_symlink()
            or not path.is_file()
            or not re.search(pattern, name)
            or SKIPPED.search(name.lower())
        ):
            continue
        text = text_of(path)
        if total + len(text) <= MOST_BYTES and is_prose(text):
            total += len(text)
            yield text


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--package", "packages", multiple=True, type=click.Choice(list(PACKAGES)), help="Only these.")
def main(out: Path, packages: tuple[str, ...]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in packages or PACKAGES:
            licence, pattern = PACKAGES[name]
            folder = Path(temporary) / name
            folder.mkdir()
            subprocess.run(
                ["apt-get", "download", "-q", name], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
            (archive,) = folder.glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, folder / "files"], check=True)
            docs = list(documents(folder / "files", pattern))
            (out / f"{name}.txt").write_text("\0".join(docs), "utf-8")
            size = sum(map(len, docs)) / 1e6
            click.echo(f"{name:24} {licence:20} {len(docs):5} documents {size:6.2f} MB  {archive.name}")


if __name__ == "__main__":
    main()
