"""Files of a configuration: found wherever they are, and refused where they are results of the run."""

import os
import shutil
from types import SimpleNamespace

import pytest

from cohortgmm.errors import ConfigError
from cohortgmm.pipeline.inputs import find_files, result_of_run


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working directory with results, and a folder beside it."""
    work, other = tmp_path / "work", tmp_path / "other"
    for folder in (work / "results" / "models", other):
        folder.mkdir(parents=True)
    (work / "results" / "models" / "P1.npz").write_text("model")
    (work / "results" / "cohort_gmm.h5ad").write_text("cohort")
    (other / "x.h5ad").write_text("input")
    monkeypatch.chdir(work)
    return SimpleNamespace(work=work, other=other)


def relative(places):
    return "results/models/P1.npz"


def with_dots(places):
    return "../work/./results/../results/models/P1.npz"


def absolute(places):
    return str(places.work / "results" / "models" / "P1.npz")


def a_link(places):
    (places.other / "link.npz").symlink_to(places.work / "results" / "models" / "P1.npz")
    return str(places.other / "link.npz")


def a_chain_of_links(places):
    (places.other / "first.npz").symlink_to("second.npz")
    (places.other / "second.npz").symlink_to(places.work / "results" / "models" / "P1.npz")
    return str(places.other / "first.npz")


def a_link_to_the_folder(places):
    (places.work / "models").symlink_to("results/models")
    return "models/P1.npz"


def a_link_to_the_results(places):
    (places.other / "res").symlink_to(places.work / "results")
    return str(places.other / "res" / "models" / "P1.npz")


def a_link_to_the_working_directory(places):
    (places.other / "w").symlink_to(places.work)
    return str(places.other / "w" / "results" / "models" / "P1.npz")


def a_second_name(places):
    os.link(places.work / "results" / "models" / "P1.npz", places.other / "hard.npz")
    return str(places.other / "hard.npz")


def results_that_are_a_link(places):
    shutil.move(places.work / "results", places.other / "disk")
    (places.work / "results").symlink_to(places.other / "disk")
    return "results/models/P1.npz"


def the_folder_that_results_lead_to(places):
    results_that_are_a_link(places)
    return str(places.other / "disk" / "models" / "P1.npz")


def a_folder_that_a_result_leads_to(places):
    shutil.move(places.work / "results" / "models", places.other / "m")
    (places.work / "results" / "models").symlink_to(places.other / "m")
    return str(places.other / "m" / "P1.npz")


def what_a_result_is_a_link_to(places):
    (places.other / "m.npz").write_text("model")
    (places.work / "results" / "models" / "P1.npz").unlink()
    (places.work / "results" / "models" / "P1.npz").symlink_to(places.other / "m.npz")
    return str(places.other / "m.npz")


def a_way_through_a_link_in_the_results(places):
    what_a_result_is_a_link_to(places)
    (places.other / "first.npz").symlink_to(places.work / "results" / "models" / "P1.npz")
    return str(places.other / "first.npz")


def in_the_home_directory(places):
    os.environ["HOME"] = str(places.work)
    return "~/results/models/P1.npz"


def by_a_variable(places):
    os.environ["HOME"] = str(places.work)
    return "$HOME/results/models/P1.npz"


def not_there_yet(places):
    (places.work / "results" / "models" / "P1.npz").unlink()
    return "results/models/P1.npz"


@pytest.mark.parametrize(
    "name",
    [
        relative,
        with_dots,
        absolute,
        a_link,
        a_chain_of_links,
        a_link_to_the_folder,
        a_link_to_the_results,
        a_link_to_the_working_directory,
        a_second_name,
        results_that_are_a_link,
        the_folder_that_results_lead_to,
        a_folder_that_a_result_leads_to,
        what_a_result_is_a_link_to,
        a_way_through_a_link_in_the_results,
        in_the_home_directory,
        by_a_variable,
        not_there_yet,
    ],
)
@pytest.mark.parametrize("key", ["input", "patients", "gmm.reference", "gmm.noise.at"])
def test_a_result_of_the_run_is_refused_whatever_way_it_is_named(places, monkeypatch, name, key):
    monkeypatch.setenv("HOME", "/nowhere")
    path = name(places)
    with pytest.raises(ConfigError) as caught:
        find_files({key: path}, "c.yaml", places.other)
    assert str(caught.value) == (
        f"c.yaml: {key}: {path} is one of this run's own results (results/models/P1.npz), which the run removes and "
        "makes again: copy it out of results/ with `python -m cohortgmm keep DIR` and name DIR/models/P1.npz"
    )
    if name is not not_there_yet:
        assert find_files({key: path}, "c.yaml", places.other, refuse_results=False)[key]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("results/patients.tsv", "with `python -m cohortgmm keep DIR` and name DIR/patients.tsv"),
        ("results/cohort_gmm.h5ad", "move or copy it out of results/ and name that file"),
        ("results/preprocessed/cohort.h5ad", "move or copy it out of results/ and name that file"),
        ("results/mine/deep/seen.py", "move or copy it out of results/ and name that file"),
        ("results/halves/models/P1.npz", "move or copy it out of results/ and name that file"),
    ],
)
def test_the_way_out_depends_on_what_it_is(places, name, way):
    path = places.work / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(ConfigError) as caught:
        find_files({"input": name}, "c.yaml", places.other)
    assert str(caught.value).endswith(way)


def test_other_files_are_taken(places):
    """Also results of other runs, and names that only look like results."""
    (places.work / "results_old").mkdir()
    (places.work / "results_old" / "x.h5ad").touch()
    (places.other / "results").mkdir()
    (places.other / "results" / "y.npz").touch()
    os.link(places.other / "x.h5ad", places.work / "second_name.h5ad")
    (places.work / "link.h5ad").symlink_to(places.other / "x.h5ad")
    for name in (
        "results_old/x.h5ad",
        str(places.other / "results" / "y.npz"),
        "../other/results/y.npz",
        "second_name.h5ad",
        "link.h5ad",
        "../other/x.h5ad",
    ):
        assert find_files({"input": name}, "c.yaml", places.work) == {"input": name}
        assert result_of_run(name) == ""


def test_without_results_nothing_is_one(places):
    shutil.rmtree("results")
    assert find_files({"input": "../other/x.h5ad"}, "c.yaml", places.work) == {"input": "../other/x.h5ad"}


def test_a_circle_of_links_is_no_file(places):
    (places.work / "a").symlink_to("b")
    (places.work / "b").symlink_to("a")
    with pytest.raises(ConfigError, match="no such file: a "):
        find_files({"input": "a"}, "c.yaml", places.other)


def test_home_and_variables_are_replaced_where_no_file_has_the_name(places, monkeypatch):
    monkeypatch.setenv("HOME", str(places.other))
    for name in ("~/x.h5ad", "$HOME/x.h5ad", "${HOME}/x.h5ad"):
        assert find_files({"input": name}, "c.yaml", places.work) == {"input": str(places.other / "x.h5ad")}
    (places.work / "~").mkdir()
    (places.work / "~" / "x.h5ad").touch()
    (places.work / "$HOME").touch()
    assert find_files({"input": "~/x.h5ad"}, "c.yaml", places.work) == {"input": "~/x.h5ad"}
    assert find_files({"input": "$HOME"}, "c.yaml", places.work) == {"input": "$HOME"}
    with pytest.raises(ConfigError, match=r"no such file: ~/y\.h5ad \(looked in "):
        find_files({"input": "~/y.h5ad"}, "c.yaml", places.work)


def test_a_link_that_leads_nowhere_is_told(places):
    (places.work / "x.h5ad").symlink_to("/nowhere/x.h5ad")
    with pytest.raises(ConfigError) as caught:
        find_files({"input": "x.h5ad"}, "c.yaml", places.work)
    assert str(caught.value) == (
        f"c.yaml: input: no such file: x.h5ad (looked in {places.work}): a link to /nowhere/x.h5ad, which does not exist"
    )


def test_all_problems_are_told_at_once(places):
    with pytest.raises(ConfigError) as caught:
        find_files({"input": "results/x", "patients": "none.tsv", "gmm.reference": None}, "c.yaml", places.other)
    first, second = str(caught.value).splitlines()
    assert first.startswith("c.yaml: input: results/x is one of this run's own results")
    assert second.startswith("c.yaml: patients: no such file: none.tsv")
