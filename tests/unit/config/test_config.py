"""Every problem of a configuration is one line with the dotted path; the defaults are one and the same everywhere."""

import inspect
import math

import numpy as np
import pytest
import yaml

import cohortgmm
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.config import Config, PreprocessConfig, QcConfig, read_config, read_gmm_options
from cohortgmm.config.gmm import DEFAULT_K, GmmConfig, default_gmm_key
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


# Numbers in YAML


def test_a_number_that_yaml_reads_as_text():
    config = yaml.safe_load("gmm: {tol: 1e-3, eps: 1e-5, train_size: 5e-1}")
    assert config["gmm"]["tol"] == "1e-3"  # YAML 1.1
    gmm = read(**config).gmm
    assert (gmm.tol, gmm.eps, gmm.train_size) == (0.001, 1e-5, 0.5)
    assert read(gmm={"tol": 0}).gmm.tol == 0.0
    assert isinstance(read(gmm={"train_size": 1}).gmm.train_size, float)


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
