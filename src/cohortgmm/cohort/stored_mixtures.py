"""Mixtures from ``adata.uns``, written by cohortgmm or ggml_ot; every array is checked against the layout."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cohortgmm.arrays import dense_array
from cohortgmm.cohort.covariances import diagonals
from cohortgmm.errors import ConfigError, DataError
from cohortgmm.mixture import SUM_TO_ONE, Background, GaussianMixture

#: Weights whose sum differs from one by at most this are normalised: other programs use single precision.
_SINGLE_PRECISION = 1e-3


def stored_mixtures(stored: Mapping[str, Any], name: str) -> dict[str, GaussianMixture]:
    """The mixtures of a cohort by patient.

    Parameters
    ----------
    stored
        The entry of ``uns``, as :func:`cohortgmm.cohort.uns.build_uns` or ggml_ot makes it.
    name
        Name of the entry in messages.

    Raises
    ------
    DataError
        If an entry is missing, an array has another shape than in the layout, or a mixture is invalid.
    """
    ids = _ids(_entry(stored, name, "weight_inference", "distribution_ids"), name)
    shared = str(_entry(stored, name, "component_sharing")) == "global"
    mu = _numbers(_entry(stored, name, "model", "mu"), f"{name}: means")
    var = _entry(stored, name, "model", "var")
    if not hasattr(var, "chunks"):  # a dataset of a file is read mixture by mixture
        var = _numbers(var, f"{name}: covariances")
    if mu.ndim not in ((2, 3) if shared else (3,)) or (mu.ndim == 3 and len(mu) != (1 if shared else len(ids))):
        one = ", which share one mixture" if shared else ""
        raise DataError(f"{name} has means of shape {mu.shape} for {len(ids)} patients{one}")
    if var.shape not in (mu.shape, (*mu.shape, mu.shape[-1])):
        raise DataError(f"{name} has covariances of shape {var.shape} for means of shape {mu.shape}")
    is_full, is_one = len(var.shape) == mu.ndim + 1, mu.ndim == 2
    if is_one:  # a shared mixture; ggml_ot writes it with a leading axis
        mu = mu[None]
    weights = stored.get("distribution_weights")
    weights = _entry(stored, name, "model", "pi") if weights is None else weights
    weights = np.atleast_2d(_numbers(weights, f"{name}: weights"))
    if weights.shape not in ((len(ids), mu.shape[1]), *([(1, mu.shape[1])] if shared else [])):
        raise DataError(
            f"{name} has weights of shape {weights.shape} for {len(ids)} patients with {mu.shape[1]} components"
        )
    counts = _counts(stored, name, ids, weights, var, len(mu))
    is_diagonal = str(_entry(stored, name, "covariance_type")) == "diag"
    result, covariances = {}, np.empty((0, 0))
    for i, (patient, k) in enumerate(zip(ids, counts, strict=True)):
        own, of_weights = (0, min(i, len(weights) - 1)) if shared else (i, i)
        index = () if is_one else (own,)
        try:
            if not shared or i == 0 or k != len(covariances):
                covariances = _covariances(var, index, k, as_diagonals=is_diagonal and is_full)
            model = GaussianMixture(_normalized(weights[of_weights, :k]), mu[own, :k], covariances)
            result[patient] = _with_background(model, stored.get("background"), i, own)
        except (ConfigError, DataError) as error:
            raise DataError(f"{name}, patient {patient!r}: {error}") from None
    return result


def _ids(values: Any, name: str) -> list[str]:
    """Ids of the patients, which must be unique."""
    if isinstance(values, str | bytes) or np.ndim(values) != 1:
        raise DataError(f"{name}: distribution_ids must be a list of patients, got {type(values).__name__}")
    ids = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]
    twice = [patient for i, patient in enumerate(ids) if patient in ids[:i]] if len(set(ids)) < len(ids) else []
    if twice:
        raise DataError(f"{name}: distribution_ids names the patient {twice[0]!r} more than once")
    return ids


def _covariances(var: Any, index: tuple[int, ...], k: int, *, as_diagonals: bool) -> np.ndarray:
    """Covariances of the k components of one mixture, from an array or from a dataset in a file."""
    if as_diagonals:
        return _numbers([diagonals(var, (*index, j)) for j in range(k)], "covariances")
    return _numbers(var[(*index, slice(k))], "covariances")


def _entry(stored: Mapping[str, Any], name: str, *keys: str) -> Any:
    """The value under nested keys."""
    value: Any = stored
    for key in keys:
        if not isinstance(value, Mapping) or key not in value:
            raise DataError(f"{name} holds no mixtures: {'/'.join(keys)} is missing")
        value = value[key]
    return value


def _numbers(values: Any, name: str) -> np.ndarray:
    return np.asarray(dense_array(values, name), dtype=np.float64)


def _counts(
    stored: Mapping[str, Any], name: str, ids: Sequence[str], weights: np.ndarray, var: Any, n_mixtures: int
) -> list[int]:
    """Number of components of every patient. If it is not stored, zeros after the last component count as padding."""
    n_most = weights.shape[1]
    counts = stored.get("distribution_n_components")
    if counts is None:
        values = np.asarray(var).reshape(n_mixtures, n_most, -1)
        used = (weights > 0) | values.any(axis=2)
        counts = np.broadcast_to(n_most - used[:, ::-1].argmax(axis=1), len(ids))
    counts = _numbers(counts, f"{name}: distribution_n_components")
    if counts.shape != (len(ids),) or not np.all((counts >= 1) & (counts <= n_most) & (counts == np.round(counts))):
        raise DataError(
            f"{name}: distribution_n_components must be {len(ids)} integers from 1 to {n_most}, one per patient, got "
            f"{counts.tolist()}"
        )
    return counts.astype(int).tolist()


def _normalized(weights: np.ndarray) -> np.ndarray:
    """Weights (K,) that sum to one; those computed in single precision are normalised."""
    total = weights.sum()
    return weights / total if SUM_TO_ONE < abs(total - 1.0) <= _SINGLE_PRECISION else weights


def _with_background(model: GaussianMixture, background: Any, i: int, own: int) -> GaussianMixture:
    """The mixture with the background of patient i, whose box is in row ``own``."""
    if background is None:
        return model
    names = ("lower", "upper", "amp")
    lower, upper, amp = (
        _numbers(_entry(background, "the background", name), f"the background's {name}") for name in names
    )
    if not (lower.ndim == upper.ndim == 2 and own < min(len(lower), len(upper)) and amp.ndim == 1 and i < len(amp)):
        raise DataError(f"the background has shapes {lower.shape}, {upper.shape} and {amp.shape}")
    return model.with_background(Background(lower[own], upper[own], float(amp[i])))
