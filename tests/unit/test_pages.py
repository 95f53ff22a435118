"""What is written about the configuration is what the code does."""

import re

import pytest
import yaml
from projects import REPOSITORY

from cohortgmm.config import Config, read_config
from cohortgmm.config.docs import PAGES

CONFIGS = sorted((REPOSITORY / "config").glob("*.yaml"))


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_current(name):
    assert (REPOSITORY / name).read_text() == PAGES[name](), "run make docs"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_example_is_valid(path):
    read_config(yaml.safe_load(path.read_text()), path.name)


def test_the_default_configuration_is_the_demo_and_names_every_key():
    default, demo = (
        yaml.safe_load((REPOSITORY / "config" / name).read_text()) for name in ("config.yaml", "demo.yaml")
    )
    assert read_config(default) == read_config(demo)
    assert set(default) == set(Config.model_fields)
    for section in ("preprocess", "gmm", "qc"):
        assert set(default[section]) == set(Config.model_fields[section].annotation.model_fields)


def test_links_of_the_pages_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "config/README.md", "resources/demo/README.md"):
        folder = (REPOSITORY / page).parent
        for target in re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / page).read_text()):
            assert (folder / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", ["pipeline", "density", "dag"])
def test_the_figures_of_the_readme_are_those_of_the_benchmark(page):
    measured = (REPOSITORY / "benchmarks" / f"{page}.md").read_text().split("\n", 2)[2].strip()
    assert measured in (REPOSITORY / "README.md").read_text(), f"paste benchmarks/{page}.md"


def test_the_verdict_on_requests_in_the_readme_is_that_of_the_benchmark():
    verdict = (REPOSITORY / "benchmarks" / "resources.md").read_text().strip().rpartition("\n\n")[2]
    assert verdict in (REPOSITORY / "README.md").read_text(), "paste the last line of benchmarks/resources.md"


def test_the_engines_figures_in_the_readme_are_those_of_the_benchmark():
    measured = (
        (REPOSITORY / "benchmarks" / "engine.md").read_text().split("\n## All points")[0].split("\n", 2)[2].strip()
    )
    pasted = (REPOSITORY / "README.md").read_text()
    for part in measured.split("\n\n"):
        assert part.startswith("## ") or part in pasted, "paste benchmarks/engine.md"
