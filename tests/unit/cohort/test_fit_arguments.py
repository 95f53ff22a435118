"""A user's functions, corners of the background, references, objects of a notebook: from options to arguments of a fit."""

import functools
import importlib
import inspect
import os
import sys

import numpy as np
import pytest

import cohortgmm
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.fit_arguments import fit_arguments, load_function, read_reference
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.config import read_gmm_options
from cohortgmm.config.gmm import BackgroundConfig, GmmConfig
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background

TWO = GaussianMixture([0.4, 0.6], [[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]], [np.eye(3), 2 * np.eye(3)])


def cells(x, names=None, noise=None):
    x = np.asarray(x)
    names = tuple(f"PC{i + 1}" for i in range(x.shape[1])) if names is None else names
    return PatientCells("P1", x, np.ones(len(x), bool), noise=noise, feature_names=names)


def arguments(x=None, **gmm):
    return fit_arguments(fit_options(read_gmm_options(gmm)), cells(np.zeros((2, 3)) if x is None else x))


def refusal(function, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Functions of the user


@pytest.fixture
def user_file(tmp_path):
    """Factory: a file of the user; gives back its path."""

    def write(text, name="seen.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_function_of_a_file_and_of_a_module(user_file):
    path = user_file("import numpy as np\nSHARE = 0.25\ndef seen(x):\n    return np.full(len(x), SHARE)\n")
    assert load_function(f"{path}:seen")(np.zeros((3, 2))).tolist() == [0.25] * 3
    assert load_function("numpy.linalg:norm") is np.linalg.norm


def test_a_relative_file_is_taken_from_the_working_directory(user_file, tmp_path, monkeypatch):
    user_file("def seen(x):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    assert load_function("seen.py:seen")(None) == 1


def test_an_edited_file_is_read_again(user_file):
    first = load_function(user_file("def seen(x):\n    return 1\n") + ":seen")
    second = load_function(user_file("def seen(x):\n    return 22\n") + ":seen")
    assert (first(None), second(None)) == (1, 22)


def test_an_edited_file_of_the_same_size_and_time_is_read_again(user_file, monkeypatch):
    """As after a copy that keeps times, or two edits within a second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    results = []
    for value in (1, 2):
        path = user_file(f"def seen(x):\n    return {value}\n")
        os.utime(path, (10**9, 10**9))
        results.append(load_function(f"{path}:seen")(None))
    assert results == [1, 2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ValueError('no table')", "cannot be imported: ValueError: no table"),
        ("import no_such_package", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("def seen(x: return", "cannot be imported: SyntaxError: "),
        (
            "open('/no/such/table')",
            "cannot be imported: FileNotFoundError: [Errno 2] No such file or directory: '/no/such/table'",
        ),
    ],
    ids=["raises", "import", "syntax", "file"],
)
def test_a_file_that_cannot_be_imported(user_file, text, reason):
    path = user_file(text)
    said = refusal(load_function, f"{path}:seen")
    assert said.startswith(f"{path}:seen: {reason}")
    assert said.endswith("(seen.py, line 1)" if "SyntaxError" in reason else reason)


def test_functions_that_are_not_there(user_file, tmp_path):
    path = user_file("def sene(x):\n    return 1\n")
    assert refusal(load_function, f"{path}:seen") == f"{path}:seen: {path} has no seen"
    assert refusal(load_function, "math:seen") == "math:seen: math has no seen"
    assert refusal(load_function, f"{tmp_path}/no.py:seen") == (
        f"{tmp_path}/no.py:seen: cannot be imported: FileNotFoundError: "
        f"[Errno 2] No such file or directory: '{tmp_path}/no.py'"
    )
    assert refusal(load_function, "no_such_module:seen") == (
        "no_such_module:seen: cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_an_attribute_error_of_the_file_is_told(user_file):
    path = user_file("import math\nTABLE = math.no_such_thing\ndef seen(x):\n    return 1\n")
    assert refusal(load_function, f"{path}:seen") == (
        f"{path}:seen: cannot be imported: AttributeError: module 'math' has no attribute 'no_such_thing'"
    )


def test_an_error_of_several_lines_is_told_in_one(user_file):
    path = user_file("raise ValueError('no table\\nof this\\n')\n")
    assert refusal(load_function, f"{path}:seen") == (f"{path}:seen: cannot be imported: ValueError: no table of this")


def test_the_name_of_a_file_hides_no_module(user_file, monkeypatch):
    """A file called secrets.py must not become what everybody else imports as `secrets`."""
    monkeypatch.delitem(sys.modules, "secrets", raising=False)
    load_function(user_file("def seen(x):\n    return 1\n", "secrets.py") + ":seen")
    try:
        assert hasattr(importlib.import_module("secrets"), "token_hex")
    finally:
        sys.modules.pop("secrets", None)


def test_a_file_may_hold_dataclasses(user_file):
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    text += "@dataclass\nclass Gate:\n    low: float\ndef seen(x):\n    return Gate(2.0).low\n"
    assert load_function(user_file(text) + ":seen")(None) == 2.0


@pytest.mark.parametrize("value", ["None", "0.5"])
def test_what_is_named_must_be_a_function(user_file, value):
    path = user_file(f"seen = {value}\n")
    assert "seen" in refusal(load_function, f"{path}:seen")


# fit_arguments


def test_without_corrections_the_options_go_through():
    options = fit_options(GmmConfig(eps=0.5, cutoff=4.0, init="random", covariance_type="diag", max_iter=7))
    before = dict(options)
    found = fit_arguments(options, cells(np.zeros((2, 3))))
    assert options == before
    assert found == {name: value for name, value in options.items() if name != "reference"}
    assert (found["eps"], found["cutoff"], found["init"], found["max_iter"]) == (0.5, 4.0, "random", 7)
    assert found.keys() <= inspect.signature(cohortgmm.fit_mixture).parameters.keys()


@pytest.mark.parametrize(
    ("corrections", "expected"),
    [
        ({}, (100, 1e-3, 1)),
        ({"cutoff": 5.0}, (100, 1e-3, 1)),
        ({"missing": True}, (2000, 1e-6, 10)),
        ({"noise": {"obsm": "v"}}, (2000, 1e-6, 10)),
        ({"completeness": {"gates": [{"inside": {"PC1": [0, 1]}}]}}, (2000, 1e-6, 10)),
        ({"background": {}, "n_init": 3}, (2000, 1e-6, 3)),
        ({"missing": True, "tol": 0.0, "max_iter": 5}, (5, 0.0, 10)),
    ],
    ids=str,
)
def test_fits_go_on_for_longer_where_cells_are_hidden(corrections, expected):
    if "background" in corrections:
        corrections["background"] = {"lower": -1.0, "upper": 1.0}
    found = arguments(**corrections)
    assert (found["max_iter"], found["tol"], found["n_init"]) == expected


def test_completeness_by_gates_by_a_function_and_by_both(user_file):
    path = user_file("def seen(x):\n    return 0.5 + 0 * x[:, 0]\n")
    gate = {"inside": {"PC3": [0, None]}}
    places = np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]])
    for completeness, expected in (
        ({"gates": [gate]}, [0, 1]),
        ({"function": f"{path}:seen"}, [0.5, 0.5]),
        ({"gates": [gate], "function": f"{path}:seen"}, [0, 0.5]),
    ):
        assert arguments(completeness=completeness)["completeness"](places).tolist() == expected
    assert arguments()["completeness"] is None
    assert refusal(arguments, completeness={"gates": [{"inside": {"PC4": [0, 1]}}]}) == (
        "gmm.completeness: no feature 'PC4'; known: PC1, PC2, PC3"
    )


def test_cells_in_single_precision_may_be_on_the_edge_of_a_gate():
    x = np.array([[5.3, 0.0], [2.0, 0.1]], dtype=np.float32)
    gate = {"gates": [{"inside": {"PC1": [None, 5.3]}}, {"half_space": {"PC1": 1, "PC2": 1}, "at_least": 2.1}]}
    completeness = arguments(x, completeness=gate)["completeness"]
    assert completeness(x.astype(float)).tolist() == [1.0, 1.0]


def test_noise_elsewhere_is_a_function_of_a_file(user_file):
    path = user_file("def noise(x):\n    return 2 + 0 * x\n")
    noise = {"obsm": "v", "at": f"{path}:noise"}
    found = arguments(noise=noise, completeness={"gates": [{"inside": {"PC1": [0, 1]}}]})
    assert "noise" not in found  # goes with the cells
    np.testing.assert_array_equal(found["noise_at"](np.ones((2, 3))), np.full((2, 3), 2.0))
    assert arguments(noise={"obsm": "v"})["noise_at"] is None


X = np.array([[1.0, np.nan, 7.0], [3.0, -2.0, np.nan], [2.0, 5.0, 7.5]])


@pytest.mark.parametrize(
    ("lower", "upper", "low", "high"),
    [
        (None, None, [1, -2, 7], [3, 5, 7.5]),
        (-4.0, None, [-4, -4, -4], [3, 5, 7.5]),
        ([-1.0, -2.5, 0.0], 9.0, [-1, -2.5, 0], [9, 9, 9]),
        (None, [4.0, 5.0, 8.0], [1, -2, 7], [4, 5, 8]),
    ],
)
def test_corners_of_the_background(lower, upper, low, high):
    """null is the patient's extremes of what is there of a feature."""
    described = {"lower": lower, "upper": upper, "amp": 0.2, "amp_min": 0.1, "amp_max": 0.3, "adjust_amp": False}
    found = arguments(X, background=described)["background"]
    np.testing.assert_array_equal(found.lower, low)
    np.testing.assert_array_equal(found.upper, high)
    assert found.lower.dtype == found.upper.dtype == np.float64
    assert (found.amp, found.amp_min, found.amp_max, found.adjust_amp) == (0.2, 0.1, 0.3, False)


def test_corners_are_exact_in_single_precision():
    x = np.array([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]], dtype=np.float32)
    found = arguments(x, background={})["background"]
    np.testing.assert_array_equal(found.lower, x[0].astype(float))
    np.testing.assert_array_equal(found.upper, x[1].astype(float))
    assert (found.log_density(x) > -np.inf).all()  # the extreme cells themselves are within


@pytest.mark.parametrize("corner", ["lower", "upper"])
def test_a_corner_needs_a_number_for_every_feature(corner):
    for numbers in ([1.0], [1.0, 2.0], [1.0] * 4):
        assert refusal(arguments, X, background={corner: numbers}) == (
            f"gmm.background.{corner} has {len(numbers)} numbers for 3 features"
        )


def test_values_that_are_missing_by_their_noise_do_not_widen_the_box():
    x, noise = np.array([[1.0, 999.0], [2.0, 5.0], [3.0, 6.0]]), np.ones((3, 2))
    noise[0, 1] = np.inf
    options = fit_options(read_gmm_options({"background": {}, "noise": {"obsm": "v"}}))
    found = fit_arguments(options, cells(x, noise=noise))["background"]
    np.testing.assert_array_equal(found.lower, [1, 5])
    np.testing.assert_array_equal(found.upper, [3, 6])


@pytest.mark.parametrize("as_file", [False, True], ids=["mixture", "file"])
def test_a_reference_keeps_its_shape_unless_something_else_is_asked_for(tmp_path, as_file):
    TWO.save(tmp_path / "reference.npz")
    reference = str(tmp_path / "reference.npz") if as_file else TWO
    options = fit_options(GmmConfig(reference="r.npz"))
    assert (options["max_iter"], options["tol"], options["n_init"]) == (2000, 1e-6, 10)
    for frozen, expected in (
        (None, {"mean": "all", "covar": "all"}),
        ({"amp": [0], "mean": "all", "covar": []}, {"amp": [0], "mean": "all", "covar": []}),
        ({"amp": [], "mean": [], "covar": []}, {"amp": [], "mean": [], "covar": []}),
        ({}, {}),
    ):
        found = fit_arguments(options | {"reference": reference, "frozen": frozen}, cells(np.zeros((2, 3))))
        assert "reference" not in found
        assert found["frozen"] == expected
        for name in ("weights", "means", "covariances"):
            np.testing.assert_array_equal(getattr(found["initial"], name), getattr(TWO, name))
        assert (found["initial"] is TWO) == (not as_file)


def test_a_reference_that_holds_no_mixture(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    options = fit_options(GmmConfig(reference=str(tmp_path / "other.npz")))
    with pytest.raises(DataError, match=r"other\.npz holds no mixture: covariances, means, weights missing$"):
        fit_arguments(options, cells(np.zeros((2, 3))))


# Objects of a notebook


def seen(x):
    return np.full(len(x), 0.5)


class Seen:
    def __call__(self, x):
        return np.full(len(x), 0.5)


def test_nothing_given_is_the_default():
    nothing = dict.fromkeys(("noise", "noise_at", "completeness", "background", "reference", "frozen"))
    assert read_gmm_options(nothing) == GmmConfig()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (seen, f"{__name__}:seen"),
        (lambda x: seen(x), "notebook:function"),
        (functools.partial(seen), "notebook:function"),
        (Seen(), "notebook:function"),
        (np.linalg.norm, "numpy.linalg:norm"),
    ],
    ids=["function", "lambda", "partial", "object", "of numpy"],
)
def test_a_function_is_taken_as_it_is_and_recorded_by_its_name(function, name):
    gmm = read_gmm_options({"completeness": function, "noise": np.ones((2, 3)), "noise_at": function})
    assert gmm.noise.record() == {"obsm": "an array", "at": name}
    found = fit_arguments(fit_options(gmm), cells(np.zeros((2, 3))))
    assert found["completeness"] is function
    assert found["noise_at"] is function


@pytest.mark.parametrize(
    ("noise", "recorded"),
    [
        ("v", {"obsm": "v"}),
        ({"obsm": "v"}, {"obsm": "v"}),
        ({"layer": "v"}, {"layer": "v"}),
        (np.ones((2, 3)), {"obsm": "an array"}),
        ({"P1": np.ones((2, 3))}, {"obsm": "an array"}),
    ],
    ids=["key", "obsm", "layer", "array", "by patient"],
)
def test_noise_is_recorded_by_its_key(noise, recorded):
    gmm = read_gmm_options({"noise": noise})
    assert gmm.noise.record() == recorded
    assert gmm.converges_slowly
    assert fit_options(gmm)["noise_at"] is None


def test_noise_elsewhere_needs_noise():
    text = "noise_at needs noise, which is not given"
    assert refusal(read_gmm_options, {"noise": None, "noise_at": seen}) == text


def test_a_background_is_taken_bit_by_bit():
    background = Background([0.1, -1 / 3, 1e-9], [0.7, 2 / 3, 1e300], 0.3, 0.1, 0.5, adjust_amp=False)
    options = fit_options(read_gmm_options({"background": background}))
    again = fit_arguments(options, cells(np.zeros((2, 3))))["background"]
    for name, value in background.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], value)
    assert read_gmm_options({"background": {"amp": 0.2}}).background == BackgroundConfig(amp=0.2)


def test_a_reference_is_read_from_its_file(tmp_path):
    assert read_reference(TWO) is TWO
    TWO.save(tmp_path / "r.npz")
    for path in (tmp_path / "r.npz", str(tmp_path / "r.npz")):
        np.testing.assert_array_equal(read_reference(path).means, TWO.means)
    assert refusal(read_reference, tmp_path / "s.npz") == f"reference: no such file: {tmp_path / 's.npz'}"


def test_a_reference_and_numbers_of_components_of_a_notebook():
    gmm = read_gmm_options({"reference": TWO, "frozen": {"mean": np.array([0, 1]), "covar": 1}})
    assert fit_options(gmm)["reference"] is TWO
    assert (gmm.frozen.mean, gmm.frozen.covar) == ([0, 1], [1])
    assert read_gmm_options({"reference": TWO, "frozen": {"mean": "all"}}).frozen.mean == "all"
    assert read_gmm_options({"reference": TWO, "frozen": {"mean": []}}).frozen.mean == []
