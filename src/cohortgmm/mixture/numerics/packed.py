"""Many small symmetric positive definite matrices at once.

The upper triangles are packed row by row along the first axis, and the matrices lie along the last one, (D (D + 1) / 2,
P): every operation of numpy works on the same element of all P of them. For the sizes of a mixture this is several
times faster than a loop over the matrices through LAPACK.
"""

from functools import cache

import numpy as np

#: Number of pivots that are multiplied before a logarithm is taken; so few overflow only with extreme variances.
_PIVOTS = 8


@cache
def packed_rows(d: int) -> tuple[slice, ...]:
    """Slices of the rows in a packed (d, d) triangle; the first element of each row lies on the diagonal."""
    starts = [j * d - j * (j - 1) // 2 for j in range(d)]
    return tuple(slice(start, start + d - j) for j, start in enumerate(starts))


@cache
def diagonal_places(d: int) -> np.ndarray:
    """Places of the diagonal in a packed (d, d) triangle."""
    return np.array([row.start for row in packed_rows(d)], dtype=np.intp)


@cache
def _column_places(d: int) -> tuple[np.ndarray, ...]:
    rows = packed_rows(d)
    return tuple(np.array([rows[a].start + j - a for a in range(j + 1)], dtype=np.intp) for j in range(d))


def pack(matrices: np.ndarray) -> np.ndarray:
    """Upper triangles of symmetric matrices (..., D, D) as (D (D + 1) / 2, ...)."""
    rows, columns = np.triu_indices(matrices.shape[-1])
    return np.ascontiguousarray(np.moveaxis(matrices[..., rows, columns], -1, 0))


def inverse_roots(matrices: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper triangular Z with Z Zᵀ = T⁻¹ of packed positive definite T.

    Parameters
    ----------
    matrices
        (D (D + 1) / 2, P) packed; overwritten.
    d
        D.

    Returns
    -------
    roots : ndarray
        Packed like the matrices.
    half_log_det : ndarray
        (P,) half the logarithm of the determinants of T.
    """
    rows = packed_rows(d)
    half_log_det, product = np.zeros(matrices.shape[1]), 1.0
    for j in range(d):  # T = Uᵀ U, Uᵀ being the Cholesky factor
        own = matrices[rows[j]]
        pivot = np.sqrt(own[0])
        own /= pivot
        for a in range(1, d - j):
            matrices[rows[j + a]] -= own[a] * own[a:]
        product = product * pivot
        if (j + 1) % _PIVOTS == 0 or j == d - 1:
            with np.errstate(divide="ignore"):
                half_log_det += np.log(product)
            product = 1.0
    if not np.isfinite(half_log_det).all():  # products of extreme variances leave the range of numbers
        half_log_det = sum(np.log(matrices[row.start]) for row in rows)
    for i in range(d - 1, -1, -1):  # Z = U⁻¹ by rows from the last one
        own = matrices[rows[i]]
        above = own[1:].copy()
        np.divide(1.0, own[0], out=own[0])
        own[1:] = 0.0
        for a in range(d - i - 1):
            own[1 + a :] -= above[a] * matrices[rows[i + 1 + a]]
        own[1:] *= own[0]
    return matrices, half_log_det


def transposed_product(roots: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Zᵀ v (D, P) of packed upper triangular Z and vectors (D, P)."""
    result = np.zeros_like(vectors)
    for i, row in enumerate(packed_rows(len(vectors))):
        result[i:] += roots[row] * vectors[i]
    return result


def product(roots: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Z v (D, P) of packed upper triangular Z and vectors (D, P)."""
    return np.stack([np.einsum("ip,ip->p", roots[row], vectors[i:]) for i, row in enumerate(packed_rows(len(vectors)))])


def sum_of_squares(roots: np.ndarray, d: int) -> np.ndarray:
    """Σ Z Zᵀ (D, D) over packed upper triangular Z (D (D + 1) / 2, P)."""
    total = np.zeros((d, d))
    for j, places in enumerate(_column_places(d)):
        column = roots[places]
        total[: j + 1, : j + 1] += column @ column.T
    return total
