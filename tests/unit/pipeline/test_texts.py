"""Texts of users pass Snakemake as they are: paths, parameters, labels, captions, the data of a report's page."""

import asyncio
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from docutils.core import publish_parts
from hostile import TEXTS
from snakemake.io import IOFile, apply_wildcards
from snakemake.report import expand_labels

from cohortgmm.errors import OutputError
from cohortgmm.pipeline.texts import LINKS, literal, plain_path, report_labels

RST = Path(__file__).parents[3] / "workflow" / "report"
RULES = RST.parent / "rules"

NAMES = [
    "{x}",
    "{x} {{y}}",
    "in <b>",
    "a\nb",
    "{",
    "a{3,5}",
    "<input>",
    "s3://bucket",
    " led",
    "{x,.*}",
    "é {é}",
    "x\x07",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_that_snakemake_would_rename_is_linked(name, here):
    path = f"{name}.h5ad"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("cells")
    link = plain_path(path)
    assert Path(link).parent == LINKS
    assert Path(link).suffix == ".h5ad"
    assert Path(link).read_text() == "cells"
    assert apply_wildcards(link, {}) == link
    before = os.lstat(link).st_mtime_ns
    assert plain_path(path) == link
    assert os.lstat(link).st_mtime_ns == before  # nothing reruns for it
    assert Path(plain_path(str(here / path))).read_text() == "cells"


@pytest.mark.parametrize("path", ["in.h5ad", "../a b/x.h5ad", "/data/%s $HOME `a` *b* 'q' é & ~.h5ad", "a/.b/c=D"])
def test_any_other_path_stays(path, here):
    assert plain_path(path) == path
    assert not LINKS.exists()
    assert str(IOFile(path).apply_wildcards({})) == path


def test_two_files_have_two_links(here):
    assert plain_path("{a}.h5ad") != plain_path("{b}.h5ad")
    assert plain_path("{a}.h5ad") != plain_path("x/{a}.h5ad")


def test_a_link_that_cannot_be_made_is_one_line(here):
    (here / ".snakemake").write_text("")
    with pytest.raises(OutputError, match=r"^'\{x\}.h5ad': Snakemake would .*rename it$"):
        plain_path("{x}.h5ad")


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_labels_and_parameters_are_the_texts_themselves(text):
    job = SimpleNamespace(params={}, input=[], output=[], rule=None)
    wildcards = SimpleNamespace(patient="x")
    labels = report_labels(lambda wildcards: {"patient": text})
    assert asyncio.run(expand_labels(labels, wildcards, job)) == {"patient": text}
    assert literal(text)(wildcards) is text


class Texts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, text):
        self.texts.append(text)


def rendered(name, **snakemake):
    """A caption as Snakemake renders it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string((RST / name).read_text(encoding="utf-8")).render(
        snakemake=SimpleNamespace(**snakemake)
    )
    page = Texts()
    page.feed(publish_parts(text, writer_name="html", settings_overrides={"report_level": 1, "halt_level": 1})["body"])
    return page


@pytest.mark.parametrize("text", [*TEXTS, *NAMES], ids=ascii)
@pytest.mark.parametrize("name", ["patient.rst", "correction.rst", "workflow.rst"])
def test_captions_show_texts_as_they_are(name, text):
    plain, hostile = (
        rendered(name, params=SimpleNamespace(patient=value), config={"input": value}) for value in ("plain", text)
    )
    assert hostile.tags == plain.tags
    expected = "".join(" " if char.isspace() else char for char in text)
    assert "".join(hostile.texts) == "".join(plain.texts).replace("plain", expected, 1)


def test_no_rule_hands_a_name_to_snakemake_as_it_is():
    """In a dict it stays as it is; by itself, or in a list, Snakemake replaces what looks like a wildcard."""
    named = r"CONFIG\.(input|patients|\w+_col|patient_column|use_rep|gmm_key|model_dump_json)\b"
    files = [path for path in sorted(RULES.glob("*.smk")) if path.name != "common.smk"]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if re.match(rf"\s+(\w+=)?{named}[^=]*,$", line)] == []
    assert sum("literal(CONFIG." in line for line in lines) >= 5
