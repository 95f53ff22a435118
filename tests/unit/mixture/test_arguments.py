"""Arguments of the wrong type or out of range: one line that names them, never a traceback of numpy."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cohortgmm.arguments import check_number, generator
from cohortgmm.errors import CohortgmmError, ConfigError, DataError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.stacking import cross_validate, stack, stacking_weights

X = np.vstack([np.random.default_rng(0).normal(size=(40, 2)), np.random.default_rng(1).normal(6, 1, size=(40, 2))])
FIT = fit_mixture(X, 2)
MODEL = FIT.model
WHOLE = ("n_components", "max_iter", "n_init", "n_threads", "split_merge")
REAL = ("tol", "eps", "cutoff")


def fit(**changed):
    return fit_mixture(X, **({"n_components": 2} | changed))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [-1, 2.0, np.float64(2.0), True, np.True_, "2", [2], np.array([2]), np.nan, 1j, {}])
def test_whole_numbers_are_whole_numbers(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is out of range: .*; give an integer of at least [01]$"):
        fit(**{name: value})


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", [int, np.int8, np.int64, np.uint16])
def test_whole_numbers_of_numpy_are_taken(name, kind, assert_bit_identical):
    assert_bit_identical(fit(**{name: kind(2)}), fit(**{name: 2}))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, True, "1e-3", [1.0], 1j, 10**400, np.float64("nan"), {}])
def test_numbers_are_finite_numbers(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is out of range: .*; give a finite number (above|of at least) 0$"):
        fit(**{name: value})


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("kind", [float, np.float32, np.float16, np.longdouble, int])
def test_numbers_of_numpy_are_taken(name, kind, assert_bit_identical):
    assert_bit_identical(fit(**{name: kind(1)}), fit(**{name: 1.0}))


def test_a_number_in_range_is_given_back():
    assert check_number("x", np.float32(0.5), 0) == 0.5
    assert check_number("x", 0, 0) == 0.0


@pytest.mark.parametrize("name", ["covariance_type", "init", "singularity_handling"])
@pytest.mark.parametrize("value", [np.array(["full", "diag"]), ["full"], 1, None, X, {}])
def test_names_are_texts(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be one of '") as caught:
        fit(**{name: value})
    assert "\n" not in str(caught.value)


SEEDS = [0, 2**32, 2**40, 2**200, np.int64(3), np.uint64(2**63), [1, 2], np.array([1, 2]), np.array(3), None]
NO_SEEDS = [-1, 1.5, True, "a", [1, -2], [], np.array(1.5), {"a": 1}, [[1], [1, 2]], np.nan, X]


@pytest.mark.parametrize("seed", [*SEEDS, np.random.SeedSequence(1), np.random.PCG64(1), np.random.RandomState(0)])
def test_seeds_of_any_size_and_generators_are_taken(seed):
    assert generator(seed).random() < 1
    assert np.isfinite(fit_mixture(X, 2, random_state=seed).log_likelihood)
    assert MODEL.sample(3, seed)[0].shape == MODEL.sample_observed(3, seed).x.shape == (3, 2)


@pytest.mark.parametrize("seed", NO_SEEDS, ids=str)
def test_other_seeds_are_refused(seed):
    for call, name in (
        (lambda: fit_mixture(X, 2, random_state=seed), "random_state"),
        (lambda: MODEL.sample(3, seed), "rng"),
        (lambda: MODEL.sample_observed(3, seed), "rng"),
        (lambda: cross_validate(X, 1, n_folds=2, random_state=seed), "random_state"),
    ):
        with pytest.raises(ConfigError, match=f"^{name} must be an integer of at least 0, None, or a generator"):
            call()


def test_a_seed_means_what_it_means_to_numpy():
    for seed in (3, 2**40, [1, 2]):
        assert generator(seed).random() == np.random.default_rng(seed).random()
    own = np.random.default_rng(0)
    assert generator(own) is own


@pytest.mark.parametrize("n", [-1, 1.5, True, "3", None, [3], 2.0])
def test_the_number_of_cells_to_draw_is_a_whole_number(n):
    for draw in (MODEL.sample, MODEL.sample_observed):
        with pytest.raises(ConfigError, match=r"^n, the number of cells, is out of range: "):
            draw(n)


# ---- mixtures ------------------------------------------------------------------------------------------------------


def test_a_fit_is_taken_for_its_mixture(assert_bit_identical):
    assert_bit_identical(fit(initial=FIT), fit(initial=MODEL))
    assert np.array_equal(stack([FIT, MODEL]).means, stack([MODEL, FIT]).means)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ("atlas.npz", r"got 'atlas\.npz': GaussianMixture\.load\(path\) reads one$"),
        ({"a": MODEL}, "got dict: name one of its mixtures$"),
        ([MODEL], "got list$"),
        (5, "got 5$"),
        (
            SimpleNamespace(weights_=1, means_=1, covariances_=1),
            r"make one, GaussianMixture\(fitted\.weights_, fitted\.means_, fitted\.covariances_\)$",
        ),
    ],
)
def test_other_starts_are_refused_with_the_way_to_a_mixture(initial, message):
    with pytest.raises(ConfigError, match=rf"^initial must be a cohortgmm\.GaussianMixture, .*{message}"):
        fit(initial=initial)


@pytest.mark.parametrize("models", [MODEL, {"a": MODEL}, "a.npz", None, 5, ["a.npz"], [MODEL, None]])
def test_stacks_are_of_mixtures(models):
    with pytest.raises(ConfigError, match=r"^models"):
        stack(models)


@pytest.mark.parametrize(
    "weights", [[1, 1j], ["a", "b"], np.ma.array([1, 2], mask=[0, 1]), [1, np.inf], 5, {}], ids=str
)
def test_weights_of_a_stack_are_numbers(weights):
    with pytest.raises(DataError, match="weights") as caught:
        stack([MODEL, MODEL], weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("log_prob", [np.ones((2, 3)) + 1j, np.ma.array(np.ones((2, 3)), mask=[[1, 0, 0]] * 2), {}])
def test_log_densities_to_stack_are_real_numbers(log_prob):
    with pytest.raises(DataError, match=r"^log_prob must be finite numbers"):
        stacking_weights(log_prob)


@pytest.mark.parametrize("background", [5, {"lower": 0}, "x", [0, 1], Background])
def test_a_background_is_a_background(background):
    with pytest.raises(ConfigError, match=r"^background must be a cohortgmm\.Background, got "):
        fit(background=background)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"amp": "0.1"}, "the background's amp must be a number, got '0.1'"),
        ({"amp_min": None}, "the background's amp_min must be a number, got None"),
        ({"amp_max": True}, "the background's amp_max must be a number, got True"),
        ({"adjust_amp": "no"}, "the background's adjust_amp must be True or False, got 'no'"),
        ({"lower": [0j]}, "the background's lower must hold real numbers, got complex128"),
        ({"upper": "x"}, "the background's upper must hold real numbers, got <U1"),
        ({"lower": [-1e308], "upper": [1e308]}, "the background's box is too large for its volume: rescale the data"),
        ({"lower": [], "upper": []}, "the background needs lower and upper of shape (D,), got (0,) and (0,)"),
    ],
)
def test_parts_of_a_background_of_another_type_are_refused(changed, message):
    with pytest.raises(CohortgmmError) as caught:
        Background(**({"lower": [0.0], "upper": [1.0]} | changed))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "frozen", [{"amp": [[0], [0, 1]]}, {"amp": [[0, 1]]}, {"amp": [True, False]}, {"amp": {0}}, {"amp": None}, {1: [0]}]
)
def test_frozen_components_are_numbers(frozen):
    with pytest.raises(ConfigError, match=r"^frozen"):
        fit(initial=MODEL, frozen=frozen)


# ---- cells ---------------------------------------------------------------------------------------------------------

ENTRIES = {
    "fit_mixture": lambda x: fit_mixture(x, 2).model.means,
    "log_prob": MODEL.log_prob,
    "responsibilities": MODEL.responsibilities,
    "background_probability": MODEL.with_background(Background([-9, -9], [9, 9])).background_probability,
    "cross_validate": lambda x: cross_validate(x, 2, n_folds=3),
}
COUNTS = np.round(2 * X) % 7


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "make",
    [
        np.ndarray.tolist,
        pd.DataFrame,
        sparse.csr_matrix,
        sparse.coo_array,
        np.asfortranarray,
        *(lambda x, dtype=dtype: x.astype(dtype) for dtype in ("f2", "f4", ">f8", "g", int, object)),
        lambda x: pd.DataFrame(x).astype("Int64"),
    ],
)
def test_cells_of_every_real_type_are_those_in_double_precision(entry, make):
    assert np.array_equal(ENTRIES[entry](make(COUNTS)), ENTRIES[entry](COUNTS))


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_masked_or_missing_in_a_table_is_a_missing_feature(entry):
    mask = np.random.default_rng(2).random(X.shape) < 0.1
    expected = ENTRIES[entry](np.where(mask, np.nan, COUNTS))
    assert np.array_equal(ENTRIES[entry](np.ma.array(COUNTS, mask=mask)), expected)
    assert np.array_equal(ENTRIES[entry](np.ma.array(COUNTS.astype(int), mask=mask)), expected)
    assert np.array_equal(ENTRIES[entry](pd.DataFrame(COUNTS).mask(mask).astype("Int64")), expected)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "x",
    [
        X + 0j,
        X.astype(str),
        X.astype("M8[D]"),
        "cells.npy",
        None,
        {"a": X},
        FIT,
        [[1.0], [1.0, 2.0]],
        {1, 2},
        np.zeros(3, "V4"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_cells_are_refused(entry, x):
    with pytest.raises(DataError, match=r"^cells must ") as caught:
        ENTRIES[entry](x)
    assert "\n" not in str(caught.value)


def test_cells_of_one_feature_are_a_column():
    with pytest.raises(DataError, match=r"^cells must be an array of shape \(n, D\), got \(80,\): .* x\[:, None\]$"):
        fit_mixture(X[:, 0], 2)


def test_results_of_completeness_functions_are_real_numbers():
    for values in (np.ones(80) + 0j, np.ma.array(np.ones(80), mask=np.arange(80) == 3), ["a"] * 80, {}):
        with pytest.raises(DataError, match="the completeness function returned"):
            fit(completeness=lambda x, values=values: values)
    same = [fit(completeness=lambda x, t=t: np.ones(len(x), dtype=t), max_iter=5) for t in (bool, "f2", int, float)]
    assert len({one.log_likelihood for one in same}) == 1
