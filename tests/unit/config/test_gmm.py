"""The section `gmm`: its corrections, the candidates for k, and what fits depend on."""

import copy
import math
import re

import numpy as np
import pytest
import yaml

from cohortgmm.cohort.fit_options import fit_options, fit_settings
from cohortgmm.config import read_config, read_gmm_options
from cohortgmm.config.gmm import BackgroundConfig, GmmConfig
from cohortgmm.errors import ConfigError

NEEDED = {"input": "cohort.h5ad", "patient_col": "patient"}

ONE_TO_TEN = tuple(range(1, 11))


def read(**keys):
    return read_config(NEEDED | keys, "config.yaml")


def message(**keys):
    with pytest.raises(ConfigError) as caught:
        read(**keys)
    return str(caught.value)


# Corrections: sections within sections


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"noise": "X_var"}, "gmm.noise: input should be a valid dictionary or instance of NoiseConfig, got 'X_var'"),
        ({"noise": {"obsm": 3}}, "gmm.noise.obsm: input should be a valid string, got 3"),
        ({"noise": {"obsm": "v", "att": "f.py:f"}}, "gmm.noise.att: unknown key; did you mean at?"),
        (
            {"noise": {"obsm": "v", "at": "f.py"}, "completeness": {"function": "f:g"}},
            r"gmm.noise.at: string should match pattern '^[^:]+:[A-Za-z_]\w*$', got 'f.py'",
        ),
        ({"missing": "yes"}, "gmm.missing: input should be a valid boolean, got 'yes'"),
        ({"missing": 1}, "gmm.missing: input should be a valid boolean, got 1"),
        ({"cutoff": 0}, "gmm.cutoff: input should be greater than 0, got 0"),
        ({"cutoff": "five"}, "gmm.cutoff: input should be a valid number, got 'five'"),
        (
            {"completeness": {"function": "gates.py:"}},
            r"gmm.completeness.function: string should match pattern '^[^:]+:[A-Za-z_]\w*$', got 'gates.py:'",
        ),
        (
            {"completeness": {"gates": {"inside": {}}}},
            "gmm.completeness.gates: input should be a valid list, got {'inside': {}}",
        ),
        (
            {"completeness": {"gates": [{"insid": {"PC1": [0, 1]}}]}},
            "gmm.completeness.gates.0.insid: unknown key; did you mean inside?",
        ),
        (
            {"completeness": {"gates": [{"inside": {"PC1": [0, 1]}}, {"inside": {"PC1": 5}}]}},
            "gmm.completeness.gates.1.inside.PC1: input should be a valid list, got 5",
        ),
        (
            {"completeness": {"gates": [{"outside": {"PC1": [0, "x"]}}]}},
            "gmm.completeness.gates.0.outside.PC1.1: input should be a valid number, got 'x'",
        ),
        (
            {"completeness": {"gates": [{"inside": {"PC1": [0, math.inf]}}]}},
            "gmm.completeness.gates.0.inside.PC1.1: input should be a finite number, got inf",
        ),
        (
            {"completeness": {"gates": [{"inside": {"PC1": [1]}}]}},
            "gmm.completeness.gates.0.inside: PC1 needs a lower and an upper bound, one of which may be null, got [1.0]",
        ),
        (
            {"completeness": {"gates": [{"outside": {"PC1": [None, None]}}]}},
            "gmm.completeness.gates.0.outside: PC1 needs a lower and an upper bound, one of which may be null, "
            "got [None, None]",
        ),
        (
            {"completeness": {"gates": [{"inside": {"PC1": [0, 1], "PC2": [2, 2]}}]}},
            "gmm.completeness.gates.0.inside: PC2 needs a lower bound below the upper one, got [2.0, 2.0]",
        ),
        (
            {"completeness": {"gates": [{"half_space": {"PC1": "x"}}]}},
            "gmm.completeness.gates.0.half_space.PC1: input should be a valid number, got 'x'",
        ),
        (
            {"completeness": {"gates": [{"half_space": {"PC1": 1}, "at_least": None}]}},
            "gmm.completeness.gates.0.at_least: input should be a valid number, got None",
        ),
        (
            {"background": True},
            "gmm.background: input should be a valid dictionary or instance of BackgroundConfig, got True",
        ),
        ({"background": {"amp": -0.1}}, "gmm.background.amp: input should be greater than or equal to 0, got -0.1"),
        ({"background": {"amp_max": 2}}, "gmm.background.amp_max: input should be less than or equal to 1, got 2"),
        ({"background": {"adjust_amp": 0}}, "gmm.background.adjust_amp: input should be a valid boolean, got 0"),
        ({"background": {"adjust": True}}, "gmm.background.adjust: unknown key; did you mean adjust_amp?"),
        (
            {"background": {"zzz": 1}},
            f"gmm.background.zzz: unknown key; known: {', '.join(BackgroundConfig.model_fields)}",
        ),
        ({"reference": 3}, "gmm.reference: input should be a valid string, got 3"),
        (
            {"reference": "r.npz", "frozen": "all"},
            "gmm.frozen: input should be a valid dictionary or instance of FrozenConfig, got 'all'",
        ),
        ({"reference": "r.npz", "frozen": {"means": "all"}}, "gmm.frozen.means: unknown key; did you mean mean?"),
    ],
    ids=str,
)
def test_problems_of_corrections_are_one_line_with_the_dotted_path(keys, line):
    assert message(gmm=keys) == f"config.yaml: {line}"


ONE_GATE = {"gates": [{"inside": {"PC1": [0, 1]}}]}


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"noise": {}}, "noise: needs one of obsm and layer"),
        ({"noise": {"obsm": "v", "layer": "v"}}, "noise: needs one of obsm and layer"),
        ({"noise": {"obsm": "v", "at": "f.py:f"}}, "noise.at needs completeness, which is not given"),
        ({"completeness": {}}, "completeness: needs gates or a function"),
        ({"completeness": {"gates": []}}, "completeness: needs gates or a function"),
        (
            {"completeness": {"gates": [{}]}},
            "completeness: gates.0: a gate needs one of inside, outside and half_space",
        ),
        (
            {"completeness": {"gates": [*ONE_GATE["gates"], {"at_least": 3}]}},
            "completeness: gates.1: a gate needs one of inside, outside and half_space",
        ),
        (
            {"completeness": {"gates": [{"inside": {"PC1": [0, 1]}, "outside": {"PC2": [0, 1]}}]}},
            "completeness: gates.0: a gate needs one of inside, outside and half_space",
        ),
        (
            {"completeness": {"gates": [{"inside": {}}]}},
            "completeness: gates.0: a gate needs one of inside, outside and half_space",
        ),
        ({"background": {"amp_max": 0.05}}, "background: needs amp_min <= amp <= amp_max"),
        ({"background": {"amp_min": 0.2}}, "background: needs amp_min <= amp <= amp_max"),
        (
            {"background": {"lower": [0, 0], "upper": [1, 1, 1]}},
            "background: needs as many numbers in lower as in upper, got 2 and 3",
        ),
        (
            {"background": {"lower": [0], "upper": [1, 1]}},
            "background: needs as many numbers in lower as in upper, got 1 and 2",
        ),
        ({"frozen": {"mean": "all"}}, "frozen needs a mixture in reference, which is not given"),
        ({"frozen": {}}, "frozen needs a mixture in reference, which is not given"),
        ({"init": "none"}, "init needs a mixture in reference, which is not given"),
        (
            {"reference": "r.npz", "split_merge": 2},
            "split_merge must be 0: it moves components of reference",
        ),
    ],
    ids=str,
)
def test_corrections_that_do_not_go_together(keys, line):
    assert message(gmm=keys) == f"config.yaml: gmm: {line}"
    with pytest.raises(ConfigError) as caught:
        read_gmm_options(keys)
    assert str(caught.value) == f"fit_gmm: {line}"


def test_an_unknown_key_of_a_correction_has_its_hint():
    """What is said besides, that the section is incomplete, may be dropped: see below."""
    for keys, line in (
        ({"noise": {"obms": "v"}}, "gmm.noise.obms: unknown key; did you mean obsm?"),
        ({"completeness": {"gate": []}}, "gmm.completeness.gate: unknown key; did you mean gates?"),
    ):
        assert line in message(gmm=keys)


def test_a_misspelt_key_is_one_problem():
    assert message(gmm={"noise": {"obms": "v"}}) == "config.yaml: gmm.noise.obms: unknown key; did you mean obsm?"


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"background": {"lower": "x"}}, "gmm.background.lower"),
        ({"background": {"upper": {"PC1": 3}}}, "gmm.background.upper"),
        ({"background": {"upper": [1, "x"]}}, "gmm.background.upper.1"),
        ({"reference": "r", "frozen": {"mean": "al"}}, "gmm.frozen.mean"),
        ({"reference": "r", "frozen": {"mean": 3}}, "gmm.frozen.mean"),
        ({"reference": "r", "frozen": {"covar": [0, 0.5]}}, "gmm.frozen.covar.1"),
        ({"reference": "r", "frozen": {"mean": [-1]}}, "gmm.frozen.mean.0"),
        ({"reference": "r", "frozen": {"amp": [0, -2]}}, "gmm.frozen.amp.1"),
    ],
    ids=str,
)
def test_a_key_of_several_types_is_one_line_too(keys, path):
    said = message(gmm=keys)
    assert "\n" not in said
    assert said.startswith(f"config.yaml: {path}: ")


def test_a_reference_has_a_name():
    assert "gmm.reference" in message(gmm={"reference": ""})


def test_a_box_without_inside():
    assert "gmm: background" in message(gmm={"background": {"lower": 3, "upper": 1}})


GOOD = {
    "noise": {"obsm": "v", "at": "f.py:g"},
    "missing": True,
    "completeness": {
        "gates": [{"inside": {"PC1": [0, 1]}}, {"half_space": {"PC1": 1}, "at_least": 2}],
        "function": "a:b",
    },
    "background": {"lower": -1, "upper": [1, 2], "amp": 0.1, "amp_min": 0, "amp_max": 1, "adjust_amp": True},
    "cutoff": 5,
    "reference": "r.npz",
    "frozen": {"amp": [0], "mean": "all", "covar": []},
}

JUNK = (
    None,
    3,
    -1,
    2.5,
    "x",
    "",
    [],
    {},
    [1, "x"],
    {"PC1": 3},
    {"PC1": [1, "x"]},
    [{}],
    [None],
    {3: [0, 1]},
    [[1]],
    math.nan,
)


def places(value, path=()):
    """Paths of all that is within a configuration."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def test_whatever_is_wrong_is_said_with_the_path_of_its_key():
    """Every value replaced by every piece of junk: no exception but ours, no line but with a key that is there."""
    assert read(gmm=GOOD).gmm.has_incomplete_data
    n_refused = 0
    for path in places(GOOD):
        for junk in JUNK:
            changed = copy.deepcopy(GOOD)
            value = changed
            for key in path[:-1]:
                value = value[key]
            value[path[-1]] = junk
            try:
                read(gmm=changed)
            except ConfigError as error:
                n_refused += 1
                lines = str(error).removeprefix("config.yaml: ").splitlines()
                for line in lines[1:] or lines:
                    said = line.strip().split(": ")[0]
                    assert re.fullmatch(r"gmm(\.\w+)*", said), line
                    assert "\n" not in line
    assert n_refused > 300


def test_good_corrections():
    text = """
    noise: {obsm: X_var, at: noise.py:noise}
    missing: true
    completeness:
      function: my.module:seen
      gates:
        - inside: {PC1: [-1e1, null], PC2: [0, 3]}
        - half_space: {PC1: 1, "scVI 2": -2e-1}
          at_least: -4
    background: {lower: [-8, -9.5], upper: 1e2, amp: 0.2, amp_max: 0.3}
    cutoff: 5
    reference: r.npz
    frozen: {mean: all, covar: [0, 2]}
    """
    gmm = read(gmm=yaml.safe_load(text)).gmm
    assert gmm.noise.model_dump() == {"obsm": "X_var", "layer": None, "at": "noise.py:noise"}
    assert gmm.completeness.gates[0].inside == {"PC1": [-10.0, None], "PC2": [0.0, 3.0]}
    assert (gmm.completeness.gates[1].half_space, gmm.completeness.gates[1].at_least) == (
        {"PC1": 1.0, "scVI 2": -0.2},
        -4.0,
    )
    assert (gmm.background.lower, gmm.background.upper) == ([-8.0, -9.5], 100.0)
    assert fit_options(gmm) == {
        "covariance_type": "full",
        "eps": 1e-4,
        "singularity_handling": "guarded",
        "init": "kmeans",
        "split_merge": 0,
        "cutoff": 5.0,
        "reference": "r.npz",
        "max_iter": 2000,
        "tol": 1e-6,
        "n_init": 10,
        "completeness": {
            "gates": [
                {"inside": {"PC1": [-10.0, None], "PC2": [0.0, 3.0]}, "outside": None, "half_space": None, "at_least": 0.0},
                {"inside": None, "outside": None, "half_space": {"PC1": 1.0, "scVI 2": -0.2}, "at_least": -4.0},
            ],
            "function": "my.module:seen",
        },
        "background": {
            "lower": [-8.0, -9.5], "upper": 100.0, "amp": 0.2, "amp_min": 0.0, "amp_max": 0.3, "adjust_amp": True,
        },
        "frozen": {"amp": [], "mean": "all", "covar": [0, 2]},
        "noise_at": "noise.py:noise",
    }  # fmt: skip


def test_sections_that_are_null_or_empty():
    gmm = read(gmm={"noise": None, "completeness": None, "background": None, "reference": None, "frozen": None}).gmm
    assert gmm == GmmConfig()
    assert not gmm.converges_slowly
    assert read(gmm={"background": {}}).gmm.background == BackgroundConfig()


@pytest.mark.parametrize(
    ("keys", "corrected", "hidden"),
    [
        ({}, False, False),
        ({"cutoff": 5, "split_merge": 1}, False, False),
        ({"reference": "r.npz"}, False, True),
        ({"missing": True}, True, True),
        ({"noise": {"layer": "v"}}, True, True),
        ({"completeness": ONE_GATE}, True, True),
        ({"background": {}}, True, True),
    ],
    ids=str,
)
def test_what_counts_as_a_correction(keys, corrected, hidden):
    gmm = read(gmm=keys).gmm
    assert (gmm.has_incomplete_data, gmm.converges_slowly) == (corrected, hidden)
    assert fit_settings(gmm) == (
        {"max_iter": 2000, "tol": 1e-6, "n_init": 10} if hidden else {"max_iter": 100, "tol": 1e-3, "n_init": 1}
    )
    given = {"max_iter": 7, "tol": 0.0, "n_init": 2}
    assert fit_settings(read(gmm=keys | given).gmm) == given


def test_the_split_depends_on_noise_and_gaps_and_on_no_other_correction():
    plain = read().split_options()
    for keys in ({"completeness": ONE_GATE}, {"background": {}}, {"cutoff": 5}, {"reference": "r.npz"}):
        assert read(gmm=keys).split_options() == plain
    assert read(gmm={"missing": True}).split_options() == plain | {"missing": True}
    noise = {"obsm": "v", "layer": None}
    assert read(gmm={"noise": {"obsm": "v"}}).split_options() == plain | {"noise": noise}
    at = {"noise": {"obsm": "v", "at": "f.py:f"}, "completeness": ONE_GATE}
    assert read(gmm=at).split_options() == plain | {"noise": noise}


def test_files_that_fits_depend_on():
    gmm = read(
        gmm={
            "noise": {"obsm": "v", "at": "a/noise.py:f"},
            "completeness": {"function": "b/seen.py:g"},
            "reference": "c/r.npz",
        }
    ).gmm
    assert gmm.files == {
        "gmm.reference": "c/r.npz",
        "gmm.noise.at": "a/noise.py",
        "gmm.completeness.function": "b/seen.py",
    }
    moved = gmm.with_files({key: f"/x/{path}" for key, path in gmm.files.items()})
    assert (moved.reference, moved.noise.at, moved.completeness.function) == (
        "/x/c/r.npz",
        "/x/a/noise.py:f",
        "/x/b/seen.py:g",
    )
    assert moved.noise.obsm == "v"
    modules = read(gmm={"noise": {"obsm": "v", "at": "pkg.noise:f"}, "completeness": {"function": "pkg:g"}}).gmm
    assert modules.files == {}
    assert modules.with_files({}) == modules


def test_k_comes_from_the_reference():
    gmm = GmmConfig(reference="r.npz").for_reference(2, "full", "c.yaml")
    assert (gmm.k_comps, gmm.candidates, gmm.fixed_k, gmm.effective_train_size) == (2, (2,), 2, 1.0)
    for k_comps in (2, [2]):
        assert GmmConfig(reference="r.npz", k_comps=k_comps).for_reference(2, "full", "c.yaml").fixed_k == 2
    for k_comps in (3, [1, 2]):
        with pytest.raises(ConfigError) as caught:
            GmmConfig(reference="r.npz", k_comps=k_comps).for_reference(2, "full", "c.yaml")
        assert str(caught.value) == "c.yaml: gmm.k_comps: the reference has 2 components: leave k_comps out"
    with pytest.raises(ConfigError) as caught:
        GmmConfig(reference="r.npz", covariance_type="diag").for_reference(2, "full", "c.yaml")
    assert str(caught.value) == "c.yaml: gmm.covariance_type is diag, that of the reference full"


# k_comps


@pytest.mark.parametrize(
    ("value", "candidates", "fixed"),
    [
        (None, ONE_TO_TEN, None),
        (3, (3,), 3),
        (np.int64(3), (3,), 3),
        (np.array(3), (3,), 3),
        ([3], (3,), 3),
        ([4, 2, 2, 3], (2, 3, 4), None),
        ((5, 1), (1, 5), None),
        (range(2, 5), (2, 3, 4), None),
        (np.arange(2, 5), (2, 3, 4), None),
        ([np.int32(2), 1], (1, 2), None),
        ({2, 1}, (1, 2), None),
    ],
)
def test_forms_of_k_comps(value, candidates, fixed):
    gmm = read_gmm_options({"k_comps": value})
    assert gmm.candidates == candidates
    assert all(type(k) is int for k in gmm.candidates)
    assert gmm.fixed_k == fixed
    assert gmm.effective_train_size == (0.5 if fixed is None else 1.0)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "is an empty list: name at least one k, or use null"),
        (range(3, 3), "is an empty list: name at least one k, or use null"),
        (0, "must hold integers of at least 1, got 0"),
        ([1, 0], "must hold integers of at least 1, got 0"),
        ([1, -2], "must hold integers of at least 1, got -2"),
        (2.0, "must be an integer, a list of integers or null, got 2.0"),
        ([2.0], "must hold integers of at least 1, got 2.0"),
        (np.array([1.5]), "must hold integers of at least 1, got np.float64(1.5)"),
        ("2", "must be an integer, a list of integers or null, got '2'"),
        (["2"], "must hold integers of at least 1, got '2'"),
        (True, "must be an integer, a list of integers or null, got True"),
        ([True], "must hold integers of at least 1, got True"),
        ([np.True_], "must hold integers of at least 1, got np.True_"),
        ([None], "must hold integers of at least 1, got None"),
        ([[1, 2]], "must hold integers of at least 1, got [1, 2]"),
        ({"min": 1}, "must be an integer, a list of integers or null, got {'min': 1}"),
        ([np.array([2])], "must hold integers of at least 1, got array([2])"),
    ],
)
def test_what_k_comps_cannot_be(value, problem):
    assert message(gmm={"k_comps": value}) == f"config.yaml: gmm.k_comps: {problem}"
