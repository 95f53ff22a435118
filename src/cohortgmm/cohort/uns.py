"""The layout of the mixtures in ``adata.uns``: that of ggml_ot with a few more keys."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.covariances import StackedCovariances
from cohortgmm.cohort.fit_options import fit_settings
from cohortgmm.cohort.patient_result import PatientResult
from cohortgmm.cohort.stored_mixtures import stored_mixtures
from cohortgmm.cohort.tables import Row
from cohortgmm.config.gmm import GmmConfig
from cohortgmm.errors import DataError
from cohortgmm.mixture import Background, GaussianMixture

SCHEMA_VERSION = "1"

#: Names of score columns in ggml_ot's layout.
_SCORE_NAMES = {
    "train_nll": "train_nll",
    "heldout_nll": "validation_nll",
    "nll_gap": "nll_gap",
    "n_train": "n_train_cells",
    "n_val": "n_val_cells",
    "aic": "aic",
    "bic": "bic",
}


def uns_key(patient: str) -> str:
    """Key of a patient in a dict of ``uns``: the id, with a reversible escape for characters that HDF5 does not allow.

    In an HDF5 name, a ``/`` separates groups, and a ``.`` alone stands for the group itself.
    """
    return "=2E" if patient == "." else patient.replace("=", "=3D").replace("/", "=2F")


@dataclass(frozen=True, eq=False)
class CellAssignment:
    """Component, responsibilities and probability of background of every cell of the cohort.

    Attributes
    ----------
    components
        (n,) most probable component, also for cells that are more probably background; −1 for cells of patients without
        a mixture.
    resp
        (n, max K) responsibilities, padded with zeros; zero for cells of patients without a mixture.
    background
        (n,) probability of being background; None if no mixture has one.
    """

    components: np.ndarray
    resp: np.ndarray
    background: np.ndarray | None = None


def assign_components(
    results: Sequence[PatientResult],
    units: Iterable[PatientCells],
    positions: Mapping[str, np.ndarray],
    n_cells: int,
) -> tuple[CellAssignment, dict[str, np.ndarray]]:
    """The component and the responsibilities of every cell and, with shared components, the weights of every patient.

    Parameters
    ----------
    results
        Results of the units of fitting.
    units
        Cells of the units of fitting.
    positions
        Rows of the cohort that hold the cells of every unit, by name of the unit.
    n_cells
        Number of cells of the cohort.

    Returns
    -------
    cells : CellAssignment
    weights : dict
        With shared components, the (K,) weights of every patient: those stored with the fit, or the mean responsibilities
        of the patient's cells.
    """
    by_name = {result.name: result for result in results}
    sizes = [(model.n_components, model.background is not None) for model in (one.fit.model for one in results)]
    components, resp = np.full(n_cells, -1), np.zeros((n_cells, max(k for k, _ in sizes)))
    background = np.zeros(n_cells) if any(has_background for _, has_background in sizes) else None
    weights: dict[str, np.ndarray] = {}
    for cells in units:
        fit = by_name[cells.patient].fit
        own = fit.model.responsibilities(cells.x, cells.noise_of())
        rows = positions[cells.patient]
        if background is not None:
            background[rows] = np.clip(1.0 - own.sum(axis=1), 0.0, 1.0)
        components[rows] = own.argmax(axis=1)
        resp[rows, : own.shape[1]] = own
        if cells.owner is None:
            continue
        of_patients = fit.patient_weights
        if of_patients is None:
            counts = np.bincount(cells.owner)
            sums = np.add.reduceat(own, np.r_[0, np.cumsum(counts)[:-1]])  # the cells are sorted by patient
            of_patients = sums / counts[:, None]
        weights |= dict(zip(cells.patients or (), of_patients, strict=True))
    return CellAssignment(components, resp, background), weights


def build_uns(
    patients: Mapping[str, int],
    results: Sequence[PatientResult],
    weights: Mapping[str, np.ndarray],
    gmm: GmmConfig,
    component_sharing: str,
    *,
    use_rep: str | None,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """The dict that is stored under ``uns[gmm_key]``.

    Parameters
    ----------
    patients
        Number of cells of every patient, by id, in order.
    results
        Results of the units of fitting: one for every patient, in the same order, or, with
        ``component_sharing="global"``, one for the whole cohort.
    weights
        With shared components, the weights by patient, see :func:`assign_components`.
    gmm
        The arguments of the fit.
    component_sharing
        ``"sample_specific"`` or ``"global"``.
    use_rep
        Key of the embedding; None for X.
    provenance
        Versions, seed and sources of the mixtures (scalars and texts).

    Returns
    -------
    dict
        Arrays, scalars, texts and dicts only, so that it stays the same in an ``.h5ad``. The covariances are a
        :class:`~cohortgmm.cohort.covariances.StackedCovariances`: ``numpy.asarray`` converts it to an array, and
        :func:`~cohortgmm.cohort.covariances.write_covariances` writes it to a file.
    """
    shared = component_sharing == "global"
    chosen = [_Chosen.of(result) for result in results]  # every access to a fit may read a file
    k_max = max(len(own.weights) for own in chosen)
    mu = np.stack([_pad(own.means, k_max) for own in chosen])
    pi = np.stack([_pad(own.weights, k_max) for own in chosen])
    shape = (*mu.shape, mu.shape[-1])
    var = StackedCovariances(results, shape[1:] if shared else shape)
    of_patients = [weights[patient] for patient in patients] if shared else pi
    fitted = not shared or any(own.has_patient_weights for own in chosen)
    uns: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "component_sharing": component_sharing,
        "covariance_type": gmm.covariance_type,
        "n_components": k_max,
        "distribution_n_components": np.array(
            [k_max] * len(patients) if shared else [len(own.weights) for own in chosen]
        ),
        "fit_params": _fit_params(gmm),
        "backend": "cohortgmm",
        "model_family": "gmm",
        "representation_space": "use_rep",
        "backend_metadata": {
            "fit_indices_count": sum(result.n_fit for result in results),
            "refit": "full" if gmm.fixed_k is not None else gmm.refit,
        },
        "model": {"mu": mu[0] if shared else mu, "var": var, "pi": pi},
        "distribution_weights": np.stack([_normalized(own) for own in of_patients]),
        "weight_inference": {
            "weights_fit_scope": "all_cells" if shared or gmm.refit == "full" or gmm.fixed_k else "selection_cells",
            "weights_source": "mixture" if fitted else "mean_responsibilities",
            "distribution_ids": np.array(list(patients), dtype=object),
        },
        "diagnostics": _diagnostics(chosen, list(patients.values()), shared),
        "provenance": dict(provenance),
    }
    if use_rep is not None:  # anndata < 0.12 cannot write None; ggml_ot reads a missing key as None
        uns["use_rep"] = use_rep
    if gmm.noise is not None:
        uns["noise"] = gmm.noise.record()
    if all(own.background for own in chosen):
        uns["background"] = _background(chosen, of_patients, shared)
    if gmm.fixed_k is None:
        uns["selection"] = _selection(results, chosen, gmm, shared)
    return uns


def _fit_params(gmm: GmmConfig) -> dict[str, Any]:
    params = fit_settings(gmm) | {
        "eps": float(gmm.eps),
        "singularity_handling": gmm.singularity_handling,
        "init": gmm.init,
        "split_merge": gmm.split_merge,
        "missing": gmm.missing,
    }
    return params if gmm.cutoff is None else params | {"cutoff": float(gmm.cutoff)}


def _normalized(weights: np.ndarray) -> np.ndarray:
    """Weights (K,) of the components, divided by their sum; equal weights if all cells are background."""
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1.0 / len(weights))


def _pad(array: np.ndarray, k_max: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((k_max - len(array), *array.shape[1:]))])


@dataclass(frozen=True, eq=False)
class _Chosen:
    """The values of a final fit that are stored, except its covariances."""

    weights: np.ndarray
    means: np.ndarray
    background: Background | None
    has_patient_weights: bool
    diagnostics: dict[str, Any]

    @classmethod
    def of(cls, result: PatientResult) -> "_Chosen":
        fit = result.fit
        diagnostics = {
            "n_fit": result.n_fit,
            "n_iter": fit.n_iter,
            "converged": fit.converged,
            "log_likelihood": fit.log_likelihood,
            "max_condition": fit.model.condition_numbers.max(),
            "n_floored": int(fit.floored.sum()),
            "completeness": fit.completeness,
            "n_unobserved": fit.n_unobserved,
            "n_empty": fit.n_empty,
        }
        model = fit.model.without_background()
        return cls(model.weights, model.means, fit.model.background, fit.patient_weights is not None, diagnostics)


def _background(chosen: Sequence[_Chosen], weights: Iterable[np.ndarray], shared: bool) -> dict[str, np.ndarray]:
    """The boxes of the backgrounds, and the share of background in every patient.

    With shared components, the share is one minus the sum of the patient's weights.
    """
    backgrounds = [own.background for own in chosen if own.background is not None]
    amplitudes = [background.amp for background in backgrounds]
    if shared:
        amplitudes = [float(np.clip(1.0 - own.sum(), 0.0, 1.0)) for own in weights]
    return {
        "lower": np.stack([background.lower for background in backgrounds]),
        "upper": np.stack([background.upper for background in backgrounds]),
        "amp": np.array(amplitudes),
    }


def _diagnostics(chosen: Sequence[_Chosen], n_cells: Sequence[int], shared: bool) -> dict[str, Any]:
    names = chosen[0].diagnostics
    return {"n_cells": np.array([sum(n_cells)] if shared else n_cells)} | {
        name: np.array([own.diagnostics[name] for own in chosen]) for name in names
    }


def _selection(
    results: Sequence[PatientResult], chosen: Sequence[_Chosen], gmm: GmmConfig, shared: bool
) -> dict[str, Any]:
    metric = gmm.k_selection_metric
    tables = {
        result.name: _score_table([row for row in result.scores if row["status"] == "ok"], metric) for result in results
    }
    best = {result.name: len(own.weights) for result, own in zip(results, chosen, strict=True)}
    selection: dict[str, Any] = {
        "metric": metric,
        "k_comps": np.array(gmm.candidates),
        "best_k": max(best.values()),
        "scores": _mean_scores(tables.values()),
        "selection_cells_count": sum(int(result.scores[0]["n_train"]) for result in results),
        "refit": gmm.refit,
        "train_frac": float(gmm.train_size),
        "val_frac": float(1 - gmm.train_size),
        "score_name": "validation_nll" if metric == "heldout_nll" else metric,
    }
    if not shared:
        selection["best_k_by_distribution"] = {uns_key(name): k for name, k in best.items()}
        selection["scores_by_distribution"] = {uns_key(name): table for name, table in tables.items()}
    return selection


def _score_table(rows: Sequence[Row], metric: str) -> dict[str, np.ndarray]:
    table = {"k": np.array([row["k"] for row in rows]), "score": np.array([row[metric] for row in rows], dtype=float)}
    return table | {theirs: np.array([row[ours] for row in rows]) for ours, theirs in _SCORE_NAMES.items()}


def _mean_scores(tables: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean of every column over the patients, for every k that any patient has."""
    tables = list(tables)
    ks = np.concatenate([table["k"] for table in tables])
    values, index = np.unique(ks, return_inverse=True)
    counts = np.bincount(index)
    names = [name for name in tables[0] if name != "k"]
    stacked = {name: np.concatenate([table[name] for table in tables]) for name in names}
    return {"k": values} | {name: np.bincount(index, weights=stacked[name]) / counts for name in names}


def read_gmm(data: Any, gmm_key: str | None = None) -> dict[str, GaussianMixture]:
    """Read the mixtures of a cohort, whether cohortgmm or ggml_ot wrote them.

    Parameters
    ----------
    data
        AnnData, or the path of an ``.h5ad`` (of which only ``uns`` is read).
    gmm_key
        Key in ``uns``; None for the only one that holds mixtures.

    Returns
    -------
    dict
        Mixture by patient id, in the stored order; with shared components, each mixture has the patient's own weights.

    Raises
    ------
    DataError
        If there is no such key, or it holds no mixtures or invalid ones.

    Examples
    --------
    >>> import anndata, numpy, cohortgmm
    >>> cells = numpy.random.default_rng(0).normal(size=(60, 2))
    >>> adata = anndata.AnnData(cells, obs={"patient": ["a"] * 30 + ["b"] * 30})
    >>> adata = cohortgmm.fit_gmm(adata, patient_col="patient", k_comps=2, verbose=False)
    >>> read_gmm(adata)["b"].means.shape
    (2, 2)
    """
    with _stored_uns(data) as uns:
        keys = [key for key, value in uns.items() if isinstance(value, Mapping) and "model" in value]
        if gmm_key is None and len(keys) == 1:
            gmm_key = keys[0]
        if gmm_key is None or gmm_key not in keys:
            asked = "no gmm_key given" if gmm_key is None else f"no mixtures under uns[{gmm_key!r}]"
            raise DataError(f"{asked}; keys with mixtures: {', '.join(keys) or 'none'}")
        return stored_mixtures(uns[gmm_key], f"uns[{gmm_key!r}]")


@contextmanager
def _stored_uns(data: Any) -> Iterator[Mapping[str, Any]]:
    """``uns`` of an AnnData, or the entries of a file that hold mixtures; their covariances are read when needed."""
    if not isinstance(data, str | os.PathLike):
        if not isinstance(getattr(data, "uns", None), Mapping):
            raise DataError(f"data must be AnnData or the path of an .h5ad, got {type(data).__name__}")
        yield data.uns
        return
    from cohortgmm.cohort.h5ad import member_names, open_h5ad, read_element, stored_array

    with open_h5ad(Path(data)) as file:
        uns: dict[str, dict[str, Any]] = {}
        for key in member_names(file, "uns"):
            entry, model = f"uns/{key}", f"uns/{key}/model"
            if model not in file:
                continue
            uns[key] = {name: read_element(file, f"{entry}/{name}") for name in file[entry] if name != "model"}
            parts = member_names(file, model)
            uns[key]["model"] = {
                part: (stored_array if part == "var" else read_element)(file, f"{model}/{part}") for part in parts
            }
        yield uns
