"""Many small matrices at once do what LAPACK does with one after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohortgmm.mixture.numerics.packed import (
    diagonal_places,
    inverse_roots,
    pack,
    packed_rows,
    product,
    sum_of_squares,
    transposed_product,
)

#: Sizes on both sides of the number of pivots whose product is formed at a time, once and twice over.
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 20]


def covariances(n, d, seed=0, condition=100.0):
    """(n, D, D) matrices with this ratio of eigenvalues."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(n, d, d)))[0]
    matrices = (axes * np.geomspace(1.0, 1.0 / condition, d)) @ axes.transpose(0, 2, 1)
    return 0.5 * (matrices + matrices.transpose(0, 2, 1))


def triangle(d):
    """Rows of an upper triangle, and the places of their elements when they are counted one after the other."""
    numbers = iter(range(d * (d + 1) // 2))
    return [(row, [next(numbers) for _ in range(row, d)]) for row in range(d)]


def unpack(packed, d):
    """(n, D, D) upper triangular matrices, element by element."""
    result = np.zeros((packed.shape[1], d, d))
    for row, places in triangle(d):
        result[:, row, row:] = packed[places].T
    return result


@pytest.mark.parametrize("d", SIZES)
def test_rows_of_a_packed_triangle_begin_on_the_diagonal(d):
    rows = packed_rows(d)
    assert [list(range(row.start, row.stop)) for row in rows] == [places for _, places in triangle(d)]
    assert diagonal_places(d).tolist() == [places[0] for _, places in triangle(d)]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_packing_puts_the_upper_triangles_first(d, shape):
    matrices = np.random.default_rng(0).normal(size=(*shape, d, d))
    packed = pack(matrices)
    assert packed.shape == (d * (d + 1) // 2, *shape)
    assert packed.flags.c_contiguous
    for row, places in triangle(d):
        for column, place in enumerate(places, start=row):
            assert np.array_equal(packed[place], matrices[..., row, column])


@pytest.mark.parametrize("d", SIZES)
def test_inverse_roots_are_upper_triangular_roots_of_the_inverses(d):
    matrices = covariances(50, d)
    roots, half_log_det = inverse_roots(pack(matrices), d)
    roots = unpack(roots, d)
    assert (np.diagonal(roots, axis1=1, axis2=2) > 0).all()
    # Condition numbers of 100 take two of sixteen digits.
    np.testing.assert_allclose(roots @ roots.transpose(0, 2, 1), np.linalg.inv(matrices), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(half_log_det, 0.5 * np.linalg.slogdet(matrices)[1], rtol=1e-12, atol=1e-12)
    # Z Zᵀ = T⁻¹ with Z upper triangular, and a positive diagonal, is the Cholesky factor's inverse, transposed.
    factors = np.linalg.inv(np.linalg.cholesky(matrices)).transpose(0, 2, 1)
    np.testing.assert_allclose(roots, factors, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("d", SIZES)
def test_the_matrices_are_overwritten_by_their_roots(d):
    packed = pack(covariances(3, d))
    assert inverse_roots(packed, d)[0] is packed


@pytest.mark.parametrize("scale", [1e-60, 1e60])
@pytest.mark.parametrize("d", [8, 20])
def test_determinants_beyond_the_range_of_doubles_have_logarithms(d, scale):
    """The product of twenty pivots of 1e±30 is out of range, that of eight is not."""
    _, half_log_det = inverse_roots(scale * pack(covariances(4, d)), d)
    expected = 0.5 * np.linalg.slogdet(covariances(4, d))[1] + 0.5 * d * np.log(scale)
    np.testing.assert_allclose(half_log_det, expected, rtol=1e-12)


@pytest.mark.parametrize("d", SIZES)
def test_products_are_those_of_the_matrices(d):
    rng = np.random.default_rng(1)
    packed = rng.normal(size=(d * (d + 1) // 2, 40))
    vectors = rng.normal(size=(d, 40))
    kept = packed.copy(), vectors.copy()
    roots = unpack(packed, d)
    np.testing.assert_allclose(product(packed, vectors), np.einsum("pij,jp->ip", roots, vectors), atol=1e-13)
    np.testing.assert_allclose(transposed_product(packed, vectors), np.einsum("pji,jp->ip", roots, vectors), atol=1e-13)
    squares = sum(root @ root.T for root in roots)
    np.testing.assert_allclose(sum_of_squares(packed, d), squares, rtol=1e-13, atol=1e-12)
    assert np.array_equal(packed, kept[0])
    assert np.array_equal(vectors, kept[1])


@pytest.mark.parametrize("d", SIZES)
def test_scores_and_distances_are_the_solutions_of_linear_equations(d):
    matrices, deviation = covariances(30, d, seed=2), np.random.default_rng(3).normal(size=(d, 30))
    roots, _ = inverse_roots(pack(matrices), d)
    white = transposed_product(roots, deviation)
    solutions = np.linalg.solve(matrices, deviation.T[:, :, None])[:, :, 0].T
    np.testing.assert_allclose(product(roots, white), solutions, rtol=1e-11, atol=1e-10)
    np.testing.assert_allclose((white**2).sum(axis=0), (deviation * solutions).sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("missing", [[0], [1], [3], [0, 3], [1, 2], [0, 1, 2]])
def test_rows_of_the_unit_matrix_stay_apart_from_the_others(missing):
    """How a missing feature is left out: nothing of its row comes into the roots and the determinant."""
    d, matrices = 4, covariances(10, 4)
    there = np.setdiff1d(np.arange(d), missing)
    masked = matrices.copy()
    masked[:, missing] = masked[:, :, missing] = 0.0
    masked[:, missing, missing] = 1.0
    roots, half_log_det = inverse_roots(pack(masked), d)
    roots = unpack(roots, d)
    block = matrices[:, there][:, :, there]
    inverse = np.linalg.inv(block)
    np.testing.assert_allclose((roots @ roots.transpose(0, 2, 1))[:, there][:, :, there], inverse, rtol=1e-11)
    np.testing.assert_allclose(half_log_det, 0.5 * np.linalg.slogdet(block)[1], rtol=1e-12)
    assert np.array_equal(roots[:, missing][:, :, missing], np.tile(np.eye(len(missing)), (10, 1, 1)))
    assert not roots[:, there][:, :, missing].any()
    assert not roots[:, missing][:, :, there].any()


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    d=st.integers(1, 12),
    log_condition=st.floats(0, 12),
    log_scale=st.floats(-10, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_collinear_matrices_are_factored_as_well_as_lapack_does(d, log_condition, log_scale, seed):
    """A Cholesky factor is that of a matrix within a few roundings of the one given, whatever its condition."""
    matrices = 10.0**log_scale * covariances(5, d, seed=seed, condition=10.0**log_condition)
    roots, half_log_det = inverse_roots(pack(matrices), d)
    roots = unpack(roots, d)
    for matrix, root, half in zip(matrices, roots, half_log_det, strict=True):
        # Zᵀ T Z = 1 up to the condition number; a hundred roundings for sums of up to twelve terms.
        slack = 100 * np.finfo(float).eps * max(10.0**log_condition, 1.0)
        np.testing.assert_allclose(root.T @ matrix @ root, np.eye(d), rtol=0, atol=slack)
        assert half == pytest.approx(-np.log(np.diag(root)).sum(), rel=1e-12, abs=1e-11)
        assert half == pytest.approx(0.5 * np.linalg.slogdet(matrix)[1], abs=d * slack + 1e-11)


def test_no_matrices_have_no_roots():
    roots, half_log_det = inverse_roots(np.empty((6, 0)), 3)
    assert (roots.shape, half_log_det.shape) == ((6, 0), (0,))
    assert not sum_of_squares(np.empty((6, 0)), 3).any()
