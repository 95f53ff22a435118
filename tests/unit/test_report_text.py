"""What the report says at its beginning is true of the configuration that it is about."""

from types import SimpleNamespace

import jinja2
import pytest
from projects import REPOSITORY


def text(gmm):
    source = (REPOSITORY / "workflow" / "report" / "workflow.rst").read_text(encoding="utf-8")
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)  # as Snakemake's
    config = {"input": "cohort.h5ad"} | ({} if gmm is None else {"gmm": gmm})
    return " ".join(template.render(snakemake=SimpleNamespace(config=config)).split())


@pytest.mark.parametrize("gmm", [None, {}, {"k_comps": None}, {"k_comps": [2, 3]}, {"component_sharing": "auto"}])
def test_a_k_that_was_chosen_for_every_patient(gmm):
    said = text(gmm)
    assert said.startswith("One Gaussian mixture per patient, fitted to the cells of ")
    assert "with several numbers of components k, of which one was chosen per patient. " in said
    assert "one page for each patient" in said


@pytest.mark.parametrize("gmm", [{"k_comps": 5}, {"k_comps": [5]}, {"k_comps": [5, 5]}, {"reference": "m.npz"}])
def test_a_k_that_was_given(gmm):
    said = text(gmm)
    assert "with a given number of components k. " in said
    assert "chosen" not in said


def test_components_that_patients_share():
    said = text({"component_sharing": "global"})
    assert said.startswith("One Gaussian mixture for all patients, with separate weights for each, fitted to ")
    assert "of which one was chosen. " in said
    assert "one page for all patients together" in said
    assert "with a given number" in text({"component_sharing": "global", "k_comps": 3})
