"""What is written about the configuration is what the code does."""

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
