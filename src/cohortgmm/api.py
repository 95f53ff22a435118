"""The function for notebooks, which fits a whole cohort in one call, with the same results as the pipeline."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from cohortgmm import __version__
from cohortgmm.arguments import check_count
from cohortgmm.cohort.covariances import check_size
from cohortgmm.cohort.fit_arguments import read_reference
from cohortgmm.cohort.fitting import fit_units
from cohortgmm.cohort.in_memory import check_overwritten, plain_columns, read_cells, write_result
from cohortgmm.cohort.patient_result import PatientResult
from cohortgmm.cohort.reading import Embedding
from cohortgmm.cohort.shared_weights import with_weights
from cohortgmm.cohort.split import Split, check_finite, split_patients
from cohortgmm.cohort.uns import assign_components, build_uns
from cohortgmm.config import GmmConfig, read_gmm_options
from cohortgmm.config.gmm import default_gmm_key
from cohortgmm.config.notebook import GMM_ARGUMENTS
from cohortgmm.display import format_repr, format_text, format_value
from cohortgmm.errors import ConfigError, ConvergenceWarning
from cohortgmm.mixture import Background, GaussianMixture, MixtureFit

if TYPE_CHECKING:
    from anndata import AnnData

#: Largest number of patients that a warning names.
_MOST_NAMED = 3


def fit_gmm(
    data: "AnnData | Mapping[str, Any]",
    *,
    patient_col: str | Sequence[str] | None = None,
    use_rep: str | None = None,
    component_sharing: str = "sample_specific",
    k_comps: int | Iterable[int] | None = None,
    k_selection_metric: str = "aic",
    refit: str = "none",
    covariance_type: str = "full",
    train_size: float = 0.5,
    max_iter: int | None = None,
    tol: float | None = None,
    n_init: int | None = None,
    eps: float = 1e-4,
    singularity_handling: str = "guarded",
    gmm_key: str | None = None,
    verbose: bool = True,
    random_state: int = 0,
    n_jobs: int = 1,
    noise: Any = None,
    missing: bool = False,
    completeness: Callable[[np.ndarray], np.ndarray] | Mapping[str, Any] | None = None,
    noise_at: Any = None,
    background: Background | Mapping[str, Any] | None = None,
    cutoff: float | None = None,
    init: str = "kmeans",
    reference: GaussianMixture | MixtureFit | str | os.PathLike[str] | None = None,
    frozen: Mapping[str, Sequence[int] | str] | None = None,
    split_merge: int = 0,
    min_cells: int = 1,
    on_small_patient: str = "error",
) -> "AnnData | dict[str, GaussianMixture]":
    """Fit one Gaussian mixture per patient and choose its number of components.

    The arguments are keys of the pipeline's configuration, with the same meaning, messages and defaults, except for
    three: in the pipeline, the default of ``use_rep`` is ``"X_pca"``, that of ``min_cells`` is 20, and ``random_state``
    is called ``seed``. With equal arguments, the results are the same to the last digit.

    Parameters
    ----------
    data
        AnnData, changed in place; or a mapping of patient id to (n, D) array or table. The cells of AnnData, and of
        tables whose row names are texts, are sorted by name; those of other arrays keep their order.
    patient_col
        Column of ``obs`` that names the patient of every cell (AnnData). Several columns are possible, such as
        ``["patient", "timepoint"]``; their texts are joined by ``_`` in ``obs["<gmm_key>_patient"]``.
    use_rep
        Key of ``obsm`` to model (AnnData); None is X. (Pipeline: ``"X_pca"``.)
    component_sharing
        ``"sample_specific"``: an independent mixture per patient. ``"global"``: one mixture over all cells, with
        weights for every patient. The weights of a patient are the mean responsibilities of its cells; with incomplete
        data (noise, missing features, completeness, background), they are fitted to its cells by EM with the components
        fixed. ``"auto"``: ``"sample_specific"`` for AnnData, ``"global"`` for a mapping.
    k_comps
        Number of components k. An int, or a sequence of one, is a fixed k, which is fitted to all cells. A longer
        sequence has the candidates among which k is chosen; None means 1 to 10. Candidates for which a patient has too
        few cells are left out for this patient; for a fixed k see ``on_small_patient``.
    k_selection_metric
        ``"aic"``, ``"bic"`` (both on the training cells) or ``"heldout_nll"`` (nats per held-out cell).
    refit
        ``"none"``: keep the mixture of the training cells; ``"full"``: fit the chosen k on all cells.
    covariance_type
        ``"full"`` or ``"diag"``.
    train_size
        Share of every patient's cells to which the candidates are fitted, in (0, 1]; below 1 with ``"heldout_nll"``.
    max_iter, tol, n_init, eps, singularity_handling, init, split_merge, cutoff
        See :func:`cohortgmm.fit_mixture`.
    noise
        Measurement noise per cell: variances (n, D), covariances (n, D, D) or covariances flattened to (n, D²). Or the
        same noise for all cells: variances (D,) or a covariance (D, D). AnnData: such an array, a key of ``obsm``,
        ``{"obsm": key}`` or ``{"layer": key}``. Mapping: a mapping of patient id to array, or one array for all cells.
        If n = D, a square array is ambiguous: :class:`~cohortgmm.Noise` says which of the two it is. The noise is read
        with the cells (:func:`cohortgmm.cohort.in_memory.read_cells`), stored with them in
        :class:`~cohortgmm.cohort.cells.PatientCells`, and passed to :func:`cohortgmm.fit_mixture`, which chooses the
        E-step.
    missing
        Whether NaN stands for a missing feature. If False, a NaN is an error.
    completeness, noise_at
        Functions, see :func:`cohortgmm.fit_mixture`. ``completeness`` may also be gates as in the configuration,
        ``{"gates": [{"inside": {"PC1": [-5, None]}}]}``.
    background
        :class:`~cohortgmm.Background`, or its arguments as in the configuration (``{}``: the box of the patient's
        cells).
    reference
        :class:`~cohortgmm.GaussianMixture`, :class:`~cohortgmm.MixtureFit` or the path of one, from which all fits
        start. Without ``frozen``, its means and covariances are kept, and only the weights are fitted.
    frozen
        Parameters of the reference that are kept, see :func:`cohortgmm.fit_mixture`.
    gmm_key
        Key in ``uns``; None is ``gmm_<use_rep>`` (``gmm_X`` for X).
    verbose
        Print a line per patient.
    random_state
        Seed, an integer of at least 0. The mixture of a patient depends on the seed, the patient's id and cells, and k,
        but not on the other patients.
    min_cells, on_small_patient
        A patient with fewer cells than ``min_cells``, or with too few for every k, is an error (``"error"``) or is left
        out (``"drop"``; its cells get component -1). Cells without any feature do not count. (Pipeline: ``min_cells``
        is 20.)
    n_jobs
        Number of patients that are fitted at the same time or, with ``"global"``, of threads of the one fit; -1 means
        one per core. The result does not depend on ``n_jobs``.

    Returns
    -------
    AnnData or dict
        The AnnData with ``uns[gmm_key]``, ``obs["<gmm_key>_comp"]`` and ``obsm["<gmm_key>_resp"]``; for a mapping, a
        dict of patient id to :class:`~cohortgmm.GaussianMixture`.

    Warns
    -----
    ConvergenceWarning
        Once, with the number of patients whose final mixture has not converged.

    Raises
    ------
    ConfigError
        For invalid arguments; the message lists all of them.
    DataError
        For invalid data.
    FitError
        If a fit fails; the message names patient and k.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> cohort = {"a": rng.normal(size=(300, 2)), "b": rng.normal(5, 1, size=(300, 2))}
    >>> models = fit_gmm(cohort, component_sharing="sample_specific", k_comps=1, verbose=False)
    >>> models["b"].means.round().tolist()
    [[5.0, 5.0]]
    """
    gmm = _gmm_options({name: value for name, value in locals().items() if name in GMM_ARGUMENTS})
    seed = _whole_number("random_state", random_state, 0)
    n_workers = _n_workers(n_jobs)
    is_mapping, patient_col = isinstance(data, Mapping), plain_columns(patient_col)
    cells, ids = read_cells(data, patient_col, use_rep, noise)
    gmm_key = _result_key(gmm, use_rep)
    sharing = _sharing(gmm, is_mapping)
    split = _split(cells, ids, gmm, seed, min_cells, on_small_patient)
    if not is_mapping:
        check_overwritten(data, gmm_key, patient_col, use_rep, None if gmm.noise is None else gmm.noise.obsm)
        check_size(1 if sharing == "global" else len(split.patients), max(gmm.candidates), cells.matrix.shape[1])
    results = fit_units(split.units(cells, sharing), gmm, seed, n_workers)
    _warn_of_unconverged(results, sharing)
    assigned, weights = assign_components(results, split.units(cells, sharing), split.unit_positions(sharing), len(ids))
    if is_mapping:
        if sharing == "global":
            return {patient: with_weights(results[0].fit.model, weights[patient]) for patient in split.patients}
        return {result.name: result.fit.model for result in results}
    patients = {patient: len(rows) for patient, rows in split.positions.items()}
    provenance = {"cohortgmm": __version__, "numpy": np.__version__, "seed": seed}
    uns = build_uns(patients, results, weights, gmm, sharing, use_rep=use_rep, provenance=provenance)
    write_result(data, gmm_key, uns, assigned, patient_col, ids)
    return data


def _warn_of_unconverged(results: Sequence[PatientResult], sharing: str) -> None:
    names = [result.name for result in results if not result.fit.converged]
    if not names:
        return
    of_whom = "the mixture of all patients" if sharing == "global" else _named(names, len(results))
    warnings.warn(
        f"EM did not converge for {of_whom}: raise max_iter, or tol if less precision is enough",
        ConvergenceWarning,
        stacklevel=3,
    )


def _named(names: Sequence[str], n: int) -> str:
    listed = ", ".join(map(format_text, names[:_MOST_NAMED])) + (", ..." if len(names) > _MOST_NAMED else "")
    return f"{len(names):,} of {n:,} patients ({listed})"


def _gmm_options(arguments: Mapping[str, Any]) -> GmmConfig:
    """The checked arguments; with a reference, its number of components and covariance type are filled in."""
    reference = arguments["reference"]
    if reference is None:
        return read_gmm_options(arguments)
    reference = read_reference(reference)
    gmm = read_gmm_options({**arguments, "reference": reference})
    return gmm.for_reference(reference.n_components, reference.covariance_type, "fit_gmm")


def _whole_number(name: str, value: Any, least: int, other: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(f"{name} must be {other}an integer of at least {least}, got {format_value(value)}")
    return int(value)


def _n_workers(n_jobs: Any) -> int:
    if isinstance(n_jobs, Integral) and n_jobs == -1:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _whole_number("n_jobs", n_jobs, 1, "-1 or ")


def _result_key(gmm: GmmConfig, use_rep: str | None) -> str:
    """Key of the result in ``uns``."""
    key = gmm.gmm_key or default_gmm_key(use_rep)
    if "/" in key:
        raise ConfigError(f"use_rep is {use_rep!r}, and a key of uns can have no '/': give gmm_key")
    return key


def _sharing(gmm: GmmConfig, is_mapping: bool) -> str:
    """``component_sharing``, with ``"auto"`` resolved."""
    if gmm.component_sharing != "auto":
        return gmm.component_sharing
    return "global" if is_mapping else "sample_specific"


def _split(
    cells: Embedding, ids: np.ndarray, gmm: GmmConfig, seed: int, min_cells: int, on_small_patient: str
) -> Split:
    """The cells of every patient, and which of them are fitted; an error if a value of a fitted cell is not finite."""
    if not isinstance(on_small_patient, str) or on_small_patient not in ("error", "drop"):
        raise ConfigError(f"on_small_patient must be 'error' or 'drop', got {format_repr(on_small_patient)}")
    split = split_patients(
        ids,
        names=cells.cell_names,
        train_size=gmm.effective_train_size,
        seed=seed,
        smallest_k=min(gmm.candidates),
        min_cells=check_count("min_cells", min_cells, 0),
        on_small_patient=on_small_patient,
        empty=cells.empty_cells() if gmm.missing or gmm.noise is not None else None,
    )
    check_finite(cells.matrix, ids, cells.name, used=split.rows_used, missing=gmm.missing)
    return split
