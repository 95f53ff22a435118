"""The documentation's site builds without warnings, its links lead somewhere, and its tables are those of the code."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import PAGES, REPOSITORY

from cohortgmm.cohort.tables import FRAME_COLUMNS, PATIENT_COLUMNS, SCORE_COLUMNS, SELECTION_COLUMNS
from cohortgmm.pipeline.usage import COLUMNS as USAGE_COLUMNS

DOCS = REPOSITORY / "docs"


class Links(HTMLParser):
    """What a page links to, what it loads, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(found["href"])


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> dict[Path, Links]:
    """Links of all pages of the site, by file."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {path: Links(path.read_text(encoding="utf-8")) for path in sorted(target.rglob("*.html"))}


@pytest.mark.pipeline
def test_links_within_the_site_lead_somewhere(site):
    assert {"index.html", "tutorial.html", "api.html", "mathematics.html"} <= {path.name for path in site}
    lost = []
    for page, found in site.items():
        for link in [*found.links, *found.loads]:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (page.parent / unquote(address.path)).resolve() if address.path else page
            known = site.get(target)
            if not target.is_file() or (address.fragment and known and unquote(address.fragment) not in known.anchors):
                lost.append(f"{page.name}: {link}")
    assert not lost


@pytest.mark.pipeline
def test_the_site_needs_no_network(site):
    assert [load for found in site.values() for load in found.loads if urlsplit(load).netloc] == []


def test_links_of_the_repositorys_pages_lead_somewhere():
    pages = [*PAGES, *(REPOSITORY / name for name in ("config/README.md", "resources/demo/README.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def columns_on_the_page(heading: str) -> list[str]:
    """First column of the table under a heading of the page on files."""
    text = (DOCS / "files.md").read_text(encoding="utf-8").split(f"### `{heading}`\n")[1].split("\n#")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("patients.tsv", PATIENT_COLUMNS),
        ("scores.tsv", SCORE_COLUMNS),
        ("selection.tsv", SELECTION_COLUMNS),
        ("qc/diagnostics.tsv", FRAME_COLUMNS["diagnostics"]),
        ("qc/weights.tsv", FRAME_COLUMNS["weights"]),
        ("qc/composition.tsv", FRAME_COLUMNS["composition"]),
        ("qc/efficiency.tsv", USAGE_COLUMNS),
    ],
)
def test_the_columns_of_the_page_are_those_of_the_tables(heading, columns):
    assert columns_on_the_page(heading) == list(columns)


def test_modules_that_the_pages_name_are_there():
    """So that a module that moves is found on the pages as well."""
    source = REPOSITORY / "src" / "cohortgmm"
    mathematics = (DOCS / "mathematics.md").read_text(encoding="utf-8")
    named = [
        source / "mixture" / name
        for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", mathematics)
        if not name.startswith("src/")
    ]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named += [REPOSITORY / name for name in re.findall(r"`(src/cohortgmm/[a-z_/]+(?:\.py)?)`", text)]
    assert len(named) > 20
    assert sorted({str(path.relative_to(REPOSITORY)) for path in named if not path.exists()}) == []


def numbers(text: str) -> list[str]:
    """Numbers of a cell of a table, with the signs of a benchmark."""
    return re.findall(r"[-+]?\d[\d,]*(?:\.\d+)?", text.replace("−", "-"))


def test_the_figures_of_the_readme_are_those_of_the_benchmarks():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = readme.split("tests/docs/test_site.py -->\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert 5 <= len(rows) <= 10
    for _, ours, theirs, command in rows:
        name = re.search(r"benchmarks/(\w+)\.py", command)[1]
        measured = numbers((REPOSITORY / "benchmarks" / f"{name}.md").read_text(encoding="utf-8"))
        named = ours + theirs.partition("(")[0]
        for number in numbers(named):
            assert number in measured or number in ("0", "1", "2"), f"{number} is not in benchmarks/{name}.md"


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
