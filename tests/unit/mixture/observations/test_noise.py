"""Measurement noise as users give it: four shapes, checked cell by cell."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortgmm.errors import DataError
from cohortgmm.mixture.observations.noise import Noise

N, D = 7, 3
SHAPES = {"(D,)": (D,), "(D, D)": (D, D), "(n, D)": (N, D), "(n, D, D)": (N, D, D)}


def some_noise(shape, seed=0):
    """Variances or covariances of this shape."""
    rng = np.random.default_rng(seed)
    if shape in ((D,), (N, D)):
        return rng.uniform(0.1, 2.0, size=shape)
    root = rng.normal(size=shape)
    return root @ np.swapaxes(root, -1, -2)


@pytest.mark.parametrize(
    ("name", "is_shared", "is_diagonal"),
    [("(D,)", True, True), ("(D, D)", True, False), ("(n, D)", False, True), ("(n, D, D)", False, False)],
)
def test_the_shape_says_whose_noise_it_is(name, is_shared, is_diagonal):
    given_noise = some_noise(SHAPES[name])
    noise = Noise.validated(given_noise, N, D)
    assert (noise.is_shared, noise.is_diagonal, noise.n_features) == (is_shared, is_diagonal, D)
    assert noise.values is given_noise
    each = [given_noise] * N if is_shared else list(given_noise)
    matrices = np.stack([np.diag(own) if is_diagonal else own for own in each])
    assert np.array_equal(np.broadcast_to(noise.covariances(), (N, D, D)), matrices)
    assert np.array_equal(np.broadcast_to(noise.variances(), (N, D)), np.diagonal(matrices, axis1=1, axis2=2))


@pytest.mark.parametrize("rows", [slice(2, 5), np.array([6, 0, 0, 3]), np.arange(N) % 2 == 0])
@pytest.mark.parametrize("name", SHAPES)
def test_some_cells_have_their_own_noise_or_the_shared_one(name, rows):
    noise = Noise.validated(some_noise(SHAPES[name]), N, D)
    some = noise.take(rows)
    assert (some.is_shared, some.is_diagonal) == (noise.is_shared, noise.is_diagonal)
    for left, right in ((some.variances(), noise.variances(rows)), (some.covariances(), noise.covariances(rows))):
        assert np.array_equal(left, right)
    if noise.is_shared:
        assert some is noise
        assert noise.variances(rows).shape == (D,)
        assert noise.covariances(rows).shape == (D, D)
    else:
        assert np.array_equal(some.covariances(), noise.covariances()[rows])
        assert np.array_equal(some.variances(), noise.variances()[rows])


@pytest.mark.parametrize("name", SHAPES)
def test_float32_noise_is_kept_and_given_out_in_double_precision(name):
    values = some_noise(SHAPES[name]).astype(np.float32)
    noise = Noise.validated(values, N, D)
    assert noise.values is values
    assert noise.variances().dtype == noise.covariances().dtype == np.float64
    assert np.array_equal(noise.covariances(), Noise.validated(values.astype(np.float64), N, D).covariances())


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        (1.0, 2, 3),
        np.array([1, 2, 3]),
        np.array([1, 2, 3], dtype=np.float16),
        np.array([1, 2, 3], dtype=">f8"),
        np.ma.array([1, 2, 3]),
        pd.Series([1, 2, 3]),
    ],
)
def test_other_numbers_become_floats(values):
    noise = Noise.validated(values, N, D)
    assert noise.values.dtype in (np.float32, np.float64)
    assert noise.values.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "shape",
    [(), (1,), (D + 1,), (N,), (1, D), (N, D + 1), (N + 1, D), (N, 1), (N, D, 1), (1, D, D), (N, D, D, 1), (0,)],
)
def test_other_shapes_are_refused(shape):
    message = rf"noise must have shape \(n, D\), \(n, D, D\), \(D,\) or \(D, D\) with n = {N} and D = {D}, got \("
    with pytest.raises(DataError, match=message) as caught:
        Noise.validated(np.ones(shape), N, D)
    assert str(caught.value).endswith(f"got {shape}")


@pytest.mark.parametrize("values", ["much", ["a", "b", "c"], [[1.0, 2.0], [3.0]], [object()] * 3])
def test_what_is_no_array_of_numbers_is_refused(values):
    with pytest.raises(DataError, match=r"^noise must (be numeric|be a numeric array|hold real numbers)[:,]"):
        Noise.validated(values, N, D)


@pytest.mark.parametrize("value", [-1e-300, -1.0, -np.inf, np.nan])
def test_variances_below_zero_are_refused_and_the_first_such_cell_is_named(value):
    values = some_noise((N, D))
    values[[4, 6], 1] = value
    with pytest.raises(
        DataError, match=r"^the noise of cell 4 is no covariance: variances must be at least 0, not NaN$"
    ):
        Noise.validated(values, N, D)
    with pytest.raises(DataError, match=r"^the noise is no covariance: variances must be at least 0, not NaN$"):
        Noise.validated(values[4], N, D)


def not_finite(matrix):
    matrix[0, 1] = matrix[1, 0] = np.nan


def infinite(matrix):
    matrix[0, 1] = matrix[1, 0] = np.inf


def endless_below(matrix):
    matrix[2, 2] = -np.inf


def skew(matrix):
    matrix[0, 1] += 1e-3 * np.abs(matrix).max()


def indefinite(matrix):
    matrix -= (np.linalg.eigvalsh(matrix)[0] + 1e-3 * np.abs(matrix).max()) * np.eye(D)


def negative(matrix):
    matrix *= -1


@pytest.mark.parametrize("spoil", [not_finite, infinite, endless_below, skew, indefinite, negative])
def test_matrices_that_are_no_covariances_are_refused_and_the_first_such_cell_is_named(spoil):
    values = some_noise((N, D, D))
    for cell in (4, 6):
        spoil(values[cell])
    expected = "is no covariance: variances must be at least 0, the matrix finite, symmetric and positive semidefinite$"
    with pytest.raises(DataError, match=f"^the noise of cell 4 {expected}"):
        Noise.validated(values, N, D)
    with pytest.raises(DataError, match=f"^the noise {expected}"):
        Noise.validated(values[4], N, D)


@pytest.mark.parametrize("shape", [(1000, D), (1000, D, D)])
def test_a_cell_of_a_later_tile_is_named_too(tune, shape):
    tune(tile_values=1)
    values = np.ones(shape) if len(shape) == 2 else np.tile(np.eye(D), (1000, 1, 1))
    values[777, 0] = values[900, 0] = -1.0
    with pytest.raises(DataError, match="the noise of cell 777 "):
        Noise.validated(values, 1000, D)


@pytest.mark.parametrize("shape", SHAPES.values())
def test_no_noise_at_all_is_noise(shape):
    assert not Noise.validated(np.zeros(shape), N, D).covariances().any()


@pytest.mark.parametrize("shape", [(D,), (N, D)])
def test_infinite_variances_stand_for_missing_features(shape):
    values = some_noise(shape)
    values[..., 1] = np.inf
    assert np.isinf(Noise.validated(values, N, D).variances()[..., 1]).all()


@settings(max_examples=50, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), log_scale=st.floats(-8, 8), rank=st.integers(1, D))
def test_covariances_of_any_rank_pass_even_when_rounded_to_float32(seed, log_scale, rank):
    root = 10.0**log_scale * np.random.default_rng(seed).normal(size=(N, D, rank))
    values = (root @ root.transpose(0, 2, 1)).astype(np.float32)
    taken, largest = Noise.validated(values, N, D).covariances(), np.abs(values).max(axis=(1, 2))
    # Seven digits of the largest element.
    assert (np.abs(taken - values).max(axis=(1, 2)) <= 1e-6 * largest).all()


def test_no_cells_have_noise_too():
    for shape in ((0, D), (0, D, D)):
        assert Noise.validated(np.empty(shape), 0, D).covariances().shape == (0, D, D)


@pytest.mark.parametrize("shape", ["variances", "covariances"])
@pytest.mark.parametrize("junk", [np.nan, -3.0, np.inf])
def test_what_is_said_of_missing_features_does_not_matter(shape, junk):
    values = some_noise((N, D) if shape == "variances" else (N, D, D))
    missing = np.zeros((N, D), dtype=bool)
    missing[3, 1] = missing[5] = True
    spoiled = values.copy()
    if shape == "variances":
        spoiled[missing] = junk
    else:
        spoiled[missing] = junk  # rows
        spoiled.transpose(0, 2, 1)[missing] = junk
    noise = Noise.validated(spoiled, N, D, missing=missing)
    whole = ~missing.any(axis=1)
    np.testing.assert_array_equal(noise.values[whole], values[whole])
    left = [0, *range(2, D)]
    if shape == "variances":
        assert np.isinf(noise.values[3, 1])
        np.testing.assert_array_equal(noise.values[3, left], values[3, left])
    else:
        assert np.isinf(noise.values[3, 1, 1])
        np.testing.assert_array_equal(noise.values[3][np.ix_(left, left)], values[3][np.ix_(left, left)])
    assert np.isinf(noise.variances()[5]).all()
    if junk != np.inf:
        with pytest.raises(DataError, match="the noise of cell 3 is no covariance"):
            Noise.validated(spoiled, N, D)
    missing[3] = False
    if junk != np.inf:
        with pytest.raises(DataError, match="the noise of cell 3 is no covariance"):
            Noise.validated(spoiled, N, D, missing=missing)


def test_rounding_is_mended_beside_an_infinite_variance():
    matrix = np.array([[1.0, 1.0, np.nan], [1.0, 1.0 - 1e-9, np.nan], [np.nan, np.nan, np.inf]])
    noise = Noise.validated(matrix, 10, 3)
    assert np.isinf(noise.values[2, 2])
    assert np.linalg.eigvalsh(noise.values[:2, :2])[0] >= -1e-16
    np.testing.assert_allclose(noise.values[:2, :2], 1.0, atol=1e-8)


def test_noise_that_is_made_without_its_functions():
    assert Noise([[1.0, 0.0], [0.0, 1.0]], True).values.shape == (2, 2)
    for values in (5, None, "a", np.ones((1, 1, 1, 1))):
        with pytest.raises(DataError):
            Noise(values, False)
