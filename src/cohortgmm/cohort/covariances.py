"""The covariances of all patients in ggml_ot's layout: full matrices padded with zeros, made one mixture at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cohortgmm.cohort.patient_result import PatientResult
from cohortgmm.errors import ConfigError
from cohortgmm.memory import available_memory

#: Number of rows and of columns of a block of a diagonal covariance; a file holds only the blocks on the diagonal.
_BLOCK = 64

#: Attributes that anndata gives to an array in a file.
_ATTRIBUTES = {"encoding-type": "array", "encoding-version": "0.2.0"}


class StackedCovariances:
    """(P, K, D, D) covariances of P mixtures, or (K, D, D) covariances of a single one, computed only when needed.

    Parameters
    ----------
    results
        Results of the units of fitting, in order.
    shape
        (P, K, D, D) with the largest K, or (K, D, D) for a single mixture that all patients share.
    """

    def __init__(self, results: Sequence[PatientResult], shape: tuple[int, ...]) -> None:
        self._results, self.shape = results, tuple(shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float64)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def mixtures(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Index of every mixture and its covariances, (k, D, D) or, if they are diagonal, (k, D)."""
        for i, result in enumerate(self._results):
            yield ((i,) if len(self.shape) == 4 else ()), result.fit.model.covariances

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        full = np.zeros(self.shape, dtype=dtype or self.dtype)
        diagonal = np.arange(self.shape[-1])
        for index, covariances in self.mixtures():
            own = full[index][: len(covariances)]
            if covariances.ndim == 2:
                own[:, diagonal, diagonal] = covariances
            else:
                own[...] = covariances
        return full


def check_size(n_mixtures: int, k: int, n_features: int) -> None:
    """Refuse mixtures whose covariances may not fit into memory, where ``uns`` holds them as full matrices.

    Parameters
    ----------
    n_mixtures, k, n_features
        Number of mixtures, largest number of components of a mixture, and number of features.

    Raises
    ------
    ConfigError
        If the covariances may take more than half of the free memory.
    """
    size, free = n_mixtures * k * n_features**2 * 8, available_memory()
    if free is not None and size > free / 2:
        raise ConfigError(
            f"{n_mixtures:,} mixtures of up to {k} components in {n_features:,} features take {size / 1e9:,.1f} GB in "
            f"uns, where covariances are stored as full matrices, and {free / 1e9:,.1f} GB of memory are free: fit fewer "
            "features (such as principal components) or components, give fit_gmm a mapping of patient to array, which "
            "returns the mixtures themselves, or run the pipeline, which writes them piece by piece"
        )


def write_covariances(group: Any, name: str, stacked: StackedCovariances) -> None:
    """Write covariances into a group of an HDF5 file, as the plain array that anndata would write, mixture by mixture.

    For diagonal covariances in many features, only the blocks on the diagonal are stored, compressed; HDF5 returns
    zeros for all others.

    Parameters
    ----------
    group
        The ``h5py.Group``.
    name
        Name of the dataset.
    stacked
        The covariances.
    """
    n_features, dataset = stacked.shape[-1], None
    for index, covariances in stacked.mixtures():
        in_blocks = covariances.ndim == 2 and n_features > _BLOCK
        if dataset is None:
            chunks = (*(1,) * (len(stacked.shape) - 2), _BLOCK, _BLOCK)
            options = {"chunks": chunks, "compression": "gzip", "shuffle": True} if in_blocks else {}
            dataset = group.create_dataset(name, shape=stacked.shape, dtype=stacked.dtype, **options)
            dataset.attrs.update(_ATTRIBUTES)
        if covariances.ndim == 3:
            dataset[(*index, slice(len(covariances)))] = covariances
        elif not in_blocks:
            dataset[(*index, slice(len(covariances)))] = covariances[:, :, None] * np.eye(n_features)
        else:
            for k, variances in enumerate(covariances):
                for rows in _blocks(n_features):
                    dataset[(*index, k, rows, rows)] = np.diag(variances[rows])


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))


def diagonals(covariances: Any, index: tuple[int, ...]) -> np.ndarray:
    """(D,) variances of one component, read block by block from an array or a dataset of full matrices."""
    n = covariances.shape[-1]
    return np.concatenate([np.diagonal(np.asarray(covariances[(*index, rows, rows)])) for rows in _blocks(n)])
