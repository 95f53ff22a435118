"""Every problem of a configuration is one line with the dotted path; the defaults are one and the same everywhere."""

import copy
import inspect
import math
import re

import numpy as np
import pytest
import yaml

import cohortgmm
from cohortgmm.cohort.fit_options import fit_options, fit_settings
from cohortgmm.config import Config, PreprocessConfig, QcConfig, read_config, read_gmm_options
from cohortgmm.config.gmm import DEFAULT_K, BackgroundConfig, GmmConfig, default_gmm_key
from cohortgmm.errors import ConfigError

NEEDED = {"input": "cohort.h5ad", "patient_col": "patient"}
ONE_TO_TEN = tuple(range(1, 11))


def read(**keys):
    return read_config(NEEDED | keys, "config.yaml")


def message(**keys):
    with pytest.raises(ConfigError) as caught:
        read(**keys)
    return str(caught.value)


# Keys


def test_what_must_be_there():
    with pytest.raises(ConfigError) as caught:
        read_config({})
    assert str(caught.value).splitlines() == [
        "config: 2 problems",
        "  input: is required",
        "  patient_col: is required",
    ]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"inptu": 1}, "inptu: unknown key; did you mean input?"),
        ({"patient": 1}, "patient: unknown key; did you mean patients?"),
        ({"gmm": {"kcomps": 2}}, "gmm.kcomps: unknown key; did you mean k_comps?"),
        ({"gmm": {"covariance": "full"}}, "gmm.covariance: unknown key; did you mean covariance_type?"),
        ({"preprocess": {"npcs": 2}}, "preprocess.npcs: unknown key; did you mean n_pcs?"),
        ({"qc": {"max_cell": 2}}, "qc.max_cell: unknown key; did you mean max_cells?"),
        ({"qc": {"zzzz": 2}}, "qc.zzzz: unknown key; known: patient_figures, umap, max_cells"),
        # names that Pydantic itself gives to branches of a type
        ({"int": 1}, "int: unknown key; did you mean input?"),
        ({"gmm": {"init[0]": 1}}, "gmm.init[0]: unknown key; did you mean init?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known(keys, line):
    assert message(**keys) == f"config.yaml: {line}"


def test_without_a_near_key_all_are_named():
    assert message(zzzz=1) == f"config.yaml: zzzz: unknown key; known: {', '.join(Config.model_fields)}"


def test_a_key_that_is_no_text():
    with pytest.raises(ConfigError, match=r"^config\.yaml: 7: keys should be strings, got 7$"):
        read_config(NEEDED | {7: 1}, "config.yaml")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"input": ""}, "input: string should have at least 1 character, got ''"),
        ({"patient_col": 3}, "patient_col: input should be a valid string or input should be a valid list, got 3"),
        ({"seed": "1"}, "seed: input should be a valid integer, got '1'"),
        ({"seed": True}, "seed: input should be a valid integer, got True"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0, got -1"),
        ({"min_cells": 1}, "min_cells: input should be greater than or equal to 2, got 1"),
        ({"on_small_patient": "skip"}, "on_small_patient: input should be 'error' or 'drop', got 'skip'"),
        ({"gmm": {"max_iter": True}}, "gmm.max_iter: input should be a valid integer, got True"),
        ({"gmm": {"max_iter": 10.0}}, "gmm.max_iter: input should be a valid integer, got 10.0"),
        ({"gmm": {"max_iter": 0}}, "gmm.max_iter: input should be greater than or equal to 1, got 0"),
        ({"gmm": {"n_init": 0}}, "gmm.n_init: input should be greater than or equal to 1, got 0"),
        ({"gmm": {"tol": -1e-9}}, "gmm.tol: input should be greater than or equal to 0, got -1e-09"),
        ({"gmm": {"tol": "small"}}, "gmm.tol: input should be a valid number, got 'small'"),
        ({"gmm": {"tol": math.inf}}, "gmm.tol: input should be a finite number, got inf"),
        ({"gmm": {"tol": math.nan}}, "gmm.tol: input should be a finite number, got nan"),
        ({"gmm": {"eps": 0}}, "gmm.eps: input should be greater than 0, got 0"),
        ({"gmm": {"eps": "inf"}}, "gmm.eps: input should be a finite number, got inf"),
        ({"gmm": {"train_size": 0}}, "gmm.train_size: input should be greater than 0, got 0"),
        ({"gmm": {"train_size": 1.01}}, "gmm.train_size: input should be less than or equal to 1, got 1.01"),
        ({"gmm": {"train_size": True}}, "gmm.train_size: input should be a valid number, got True"),
        (
            {"gmm": {"component_sharing": "shared"}},
            "gmm.component_sharing: input should be 'sample_specific', 'global' or 'auto', got 'shared'",
        ),
        (
            {"gmm": {"k_selection_metric": "icl"}},
            "gmm.k_selection_metric: input should be 'aic', 'bic' or 'heldout_nll', got 'icl'",
        ),
        ({"gmm": {"refit": True}}, "gmm.refit: input should be 'none' or 'full', got True"),
        ({"gmm": {"covariance_type": "tied"}}, "gmm.covariance_type: input should be 'full' or 'diag', got 'tied'"),
        ({"gmm": {"verbose": 1}}, "gmm.verbose: input should be a valid boolean, got 1"),
        ({"gmm": {"gmm_key": "a/b"}}, "gmm.gmm_key: string should match pattern '^[^/]+$', got 'a/b'"),
        ({"gmm": {"gmm_key": ""}}, "gmm.gmm_key: string should have at least 1 character, got ''"),
        ({"gmm": {"gmm_key": "."}}, "gmm.gmm_key: must not be '.', which stands for the whole of `uns`"),
        ({"gmm": 3}, "gmm: input should be a valid dictionary or instance of GmmConfig, got 3"),
        (
            {"preprocess": {"max_mito_percent": 101}},
            "preprocess.max_mito_percent: input should be less than or equal to 100, got 101",
        ),
        ({"preprocess": {"n_pcs": 1}}, "preprocess.n_pcs: input should be greater than or equal to 2, got 1"),
        ({"preprocess": {"target_sum": 0}}, "preprocess.target_sum: input should be greater than 0, got 0"),
        ({"preprocess": {"counts": "counts"}}, "preprocess.counts: must be X, raw or layer:NAME, got 'counts'"),
        ({"preprocess": {"counts": "layer:"}}, "preprocess.counts: must be X, raw or layer:NAME, got 'layer:'"),
        ({"preprocess": {"counts": "x"}}, "preprocess.counts: must be X, raw or layer:NAME, got 'x'"),
        ({"qc": {"umap": "yes"}}, "qc.umap: input should be a valid boolean, got 'yes'"),
        ({"qc": {"max_cells": 99}}, "qc.max_cells: input should be greater than or equal to 100, got 99"),
    ],
)
def test_wrong_types_and_ranges(keys, line):
    assert message(**keys) == f"config.yaml: {line}"


def test_all_problems_are_reported_at_once():
    lines = message(seed=-1, min_cels=30, gmm={"tol": -1, "foo": 2}, qc={"umap": 3}).splitlines()
    assert lines[0] == "config.yaml: 5 problems"
    assert {line.split(":")[0] for line in lines[1:]} == {"  seed", "  min_cels", "  gmm.tol", "  gmm.foo", "  qc.umap"}
    assert len(lines) == 6


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
        ({"noise": {"obsm": "v", "at": "f.py:f"}}, "noise.at is for completeness, which is not given"),
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
        ({"frozen": {"mean": "all"}}, "frozen is about the mixture in reference, which is not given"),
        ({"frozen": {}}, "frozen is about the mixture in reference, which is not given"),
        ({"init": "none"}, "init is about the mixture in reference, which is not given"),
        (
            {"reference": "r.npz", "split_merge": 2},
            "split_merge moves components, which reference is to keep",
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


# Numbers in YAML


def test_a_number_that_yaml_reads_as_text():
    config = yaml.safe_load("gmm: {tol: 1e-3, eps: 1e-5, train_size: 5e-1}")
    assert config["gmm"]["tol"] == "1e-3"  # YAML 1.1
    gmm = read(**config).gmm
    assert (gmm.tol, gmm.eps, gmm.train_size) == (0.001, 1e-5, 0.5)
    assert read(gmm={"tol": 0}).gmm.tol == 0.0
    assert isinstance(read(gmm={"train_size": 1}).gmm.train_size, float)


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


# Keys that depend on each other


def test_nothing_held_out_cannot_be_scored_held_out():
    problem = (
        "train_size 1 holds no cells out, which k_selection_metric heldout_nll needs: "
        "lower train_size or choose aic or bic"
    )
    choice = {"train_size": 1, "k_selection_metric": "heldout_nll"}
    assert message(gmm=choice) == f"config.yaml: gmm: {problem}"
    assert message(gmm=choice | {"k_comps": [1, 2]}) == f"config.yaml: gmm: {problem}"
    with pytest.raises(ConfigError) as caught:
        read_gmm_options(choice)
    assert str(caught.value) == f"fit_gmm: {problem}"
    for k_comps in (3, [3]):
        assert read(gmm=choice | {"k_comps": k_comps}).gmm.fixed_k == 3
    assert read(gmm=choice | {"k_selection_metric": "bic"}).gmm.train_size == 1


@pytest.mark.parametrize(
    ("keys", "made"),
    [
        ({"use_rep": "X_scVI"}, "X_pca"),
        ({"use_rep": None}, "X_pca"),
        ({"use_rep": "X_pca_harmony"}, "X_pca"),
        ({"preprocess": {"harmony_col": "batch"}}, "X_pca_harmony"),
    ],
)
def test_the_embedding_must_be_the_one_that_is_made(keys, made):
    asked = keys.get("use_rep", "X_pca")
    assert message(**keys) == (
        f"config.yaml: use_rep is {asked!r}, but preprocessing makes {made!r}: set use_rep to that, or "
        "preprocess.enabled to false to use an embedding that is in the input"
    )


@pytest.mark.parametrize("place", ["X", "raw", "layer:counts", "layer:layer:a b", "layer:{x}"])
def test_places_of_counts(place):
    assert read(preprocess={"counts": place, "symbols": "gene name"}).preprocess.counts == place


def test_any_embedding_can_be_used_without_preprocessing():
    for use_rep in ("X_scVI", None):
        assert read(use_rep=use_rep, preprocess={"enabled": False}).use_rep == use_rep
    assert read(use_rep="X_pca_harmony", preprocess={"harmony_col": "batch"}).gmm_key == "gmm_X_pca_harmony"


# Defaults and what follows from the keys


def test_the_defaults_are_those_of_fit_gmm_and_fit_mixture():
    defaults = {name: field.default for name, field in GmmConfig.model_fields.items()}
    for function in (cohortgmm.fit_gmm, cohortgmm.fit_mixture):
        parameters = inspect.signature(function).parameters
        shared = defaults.keys() & parameters.keys()
        assert {name: parameters[name].default for name in shared} == {name: defaults[name] for name in shared}
    assert defaults.keys() <= inspect.signature(cohortgmm.fit_gmm).parameters.keys()
    arguments = inspect.signature(cohortgmm.fit_mixture).parameters
    options = fit_options(GmmConfig())
    # The reference becomes `initial`; the noise goes with the cells.
    assert options.keys() - arguments.keys() == {"reference"}
    plain = {"max_iter": 100, "tol": 1e-3, "n_init": 1, "noise_at": None}
    assert options == {name: plain.get(name, defaults.get(name)) for name in options}
    named = ("initial", "noise", "noise_at", "completeness", "background", "cutoff", "frozen")
    assert [arguments[name].default for name in named] == [None] * len(named)


def test_the_defaults_of_the_contract():
    assert GmmConfig().model_dump() == {
        "component_sharing": "sample_specific",
        "k_comps": None,
        "k_selection_metric": "aic",
        "refit": "none",
        "covariance_type": "full",
        "train_size": 0.5,
        "max_iter": None,
        "tol": None,
        "n_init": None,
        "eps": 1e-4,
        "singularity_handling": "guarded",
        "init": "kmeans",
        "split_merge": 0,
        "noise": None,
        "missing": False,
        "completeness": None,
        "background": None,
        "cutoff": None,
        "reference": None,
        "frozen": None,
        "gmm_key": None,
        "verbose": True,
    }
    assert DEFAULT_K == ONE_TO_TEN
    config = read()
    assert config.preprocess == PreprocessConfig()
    assert config.qc == QcConfig()
    assert (config.use_rep, config.gmm_key, config.seed) == ("X_pca", "gmm_X_pca", 0)


def test_keys_of_the_result():
    assert default_gmm_key("X_pca") == "gmm_X_pca"
    assert default_gmm_key(None) == "gmm_X"
    assert read(gmm={"gmm_key": "mine"}).gmm_key == "mine"


def test_auto_is_one_mixture_per_patient_in_a_file():
    assert read(gmm={"component_sharing": "auto"}).component_sharing == "sample_specific"
    assert read(gmm={"component_sharing": "global"}).component_sharing == "global"


def test_what_the_split_depends_on():
    config = read(seed=3, min_cells=7, label_col="condition", gmm={"k_comps": [4, 2], "train_size": 0.8})
    assert config.split_options() == {
        "patient_col": "patient",
        "label_col": "condition",
        "on_mixed_label": "error",
        "use_rep": "X_pca",
        "component_sharing": "sample_specific",
        "train_size": 0.8,
        "seed": 3,
        "noise": None,
        "missing": False,
        "smallest_k": 2,
        "min_cells": 7,
        "on_small_patient": "error",
    }
    assert read(gmm={"k_comps": 4, "train_size": 0.8}).split_options()["train_size"] == 1.0


def test_conflicts_are_reported_with_the_other_problems():
    config = {
        "input": "a",
        "use_rep": "X_scVI",
        "gmm": {"train_size": 1, "k_selection_metric": "heldout_nll", "tol": -1},
    }
    with pytest.raises(ConfigError) as caught:
        read_config(config)
    lines = str(caught.value).splitlines()
    assert lines[0] == "config: 4 problems"
    assert {line.split(":")[0].strip() for line in lines[1:3]} == {"patient_col", "gmm.tol"}
    assert lines[3].startswith("  gmm: train_size 1 holds no cells out")
    assert lines[4].startswith("  use_rep is 'X_scVI', but preprocessing makes 'X_pca'")


def test_a_faulty_key_hides_the_conflicts_it_takes_part_in():
    with pytest.raises(ConfigError) as caught:
        read_config({"input": "a", "patient_col": "p", "use_rep": "X_scVI", "preprocess": {"enabled": "nein"}})
    assert str(caught.value) == "config: preprocess.enabled: input should be a valid boolean, got 'nein'"


def test_a_section_with_all_keys_commented_out_has_its_defaults():
    assert read_config({"input": "a", "patient_col": "p", "gmm": None}).gmm == GmmConfig()


def test_numbers_of_numpy_are_numbers():
    options = read_gmm_options({"max_iter": np.int64(3), "tol": np.float32(0.5), "verbose": np.bool_(False)})
    assert (options.max_iter, options.tol, options.verbose) == (3, 0.5, False)


@pytest.mark.parametrize("seed", [2**32, 2**40, -1])
def test_seeds_that_the_libraries_do_not_take_are_refused(seed):
    with pytest.raises(
        ConfigError, match=rf"^config: seed: input should be (less|greater) than or equal to \d+, got {seed}$"
    ):
        read_config({"input": "x.h5ad", "patient_col": "p", "seed": seed})


def test_the_largest_seed_is_that_of_numpys_old_generator():
    config = read_config({"input": "x.h5ad", "patient_col": "p", "seed": 2**32 - 1})
    assert np.random.RandomState(config.seed).random() < 1
    with pytest.raises(ValueError, match="Seed must be between 0 and"):
        np.random.RandomState(config.seed + 1)


# Patients of several columns


def test_patients_may_be_of_several_columns():
    config = read(patient_col=["patient", "timepoint"])
    assert config.patient_col == ["patient", "timepoint"]
    assert config.patient_column == "gmm_X_pca_patient"
    assert config.split_options()["patient_col"] == ["patient", "timepoint"]
    assert read(patient_col=["patient"]).patient_column == "patient"
    assert read().patient_column == "patient"
    assert read(gmm={"gmm_key": "mine"}, patient_col=["a", "b"]).patient_column == "mine_patient"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"patient_col": []}, "patient_col: needs one column or several different ones, got []"),
        ({"patient_col": ["a", "a"]}, "patient_col: needs one column or several different ones, got ['a', 'a']"),
        ({"patient_col": ["a", 3]}, "patient_col.1: input should be a valid string, got 3"),
        (
            {"patient_col": ["gmm_X_pca_patient", "a"]},
            "patient_col: the result overwrites the column 'gmm_X_pca_patient': choose another gmm.gmm_key",
        ),
        ({"on_mixed_label": "first"}, "on_mixed_label: input should be 'error' or 'majority', got 'first'"),
        (
            {"use_rep": "X/pca", "preprocess": {"enabled": False}},
            "use_rep is 'X/pca', and a key of uns can have no '/': set gmm.gmm_key",
        ),
    ],
)
def test_units_that_cannot_be_used(keys, said):
    with pytest.raises(ConfigError) as caught:
        read(**keys)
    assert said in str(caught.value)


def test_columns_that_are_needed_besides():
    config = read(celltype_col="type", preprocess={"hvg_batch_col": "batch"})
    assert config.further_columns() == {
        "celltype_col": "type",
        "preprocess.hvg_batch_col": "batch",
        "preprocess.harmony_col": None,
    }
    assert read(preprocess={"enabled": False}).further_columns() == {"celltype_col": None}
