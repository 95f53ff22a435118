"""The notebook's entry: a whole cohort in one call, with the same results as the pipeline."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cohortgmm import __version__
from cohortgmm.arguments import check_count
from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.covariances import check_size
from cohortgmm.cohort.fit_arguments import read_reference
from cohortgmm.cohort.fit_options import fit_options
from cohortgmm.cohort.fitting import final_fit, fit_candidate
from cohortgmm.cohort.in_memory import cells_of_anndata, cells_of_mapping
from cohortgmm.cohort.occupied import check_places
from cohortgmm.cohort.reading import Embedding
from cohortgmm.cohort.selection import select_k
from cohortgmm.cohort.split import Split, check_finite, split_patients
from cohortgmm.cohort.tables import Row
from cohortgmm.cohort.uns import assign_components, build_uns
from cohortgmm.columns import joined_column, overwritten
from cohortgmm.config import read_gmm_options
from cohortgmm.config.gmm import GmmConfig, default_gmm_key
from cohortgmm.display import format_repr, format_text, format_value
from cohortgmm.errors import CohortgmmError, ConfigError
from cohortgmm.mixture import GaussianMixture, MixtureFit, one_blas_thread


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Everything that came of one part (a patient, or the cohort)."""

    rows: list[Row]
    choice: Row
    fit: MixtureFit
    n_fit: int


def fit_gmm(
    data,
    *,
    patient_col: str | Sequence[str] | None = None,
    use_rep: str | None = None,
    component_sharing: str = "sample_specific",
    k_comps=None,
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
    noise=None,
    missing: bool = False,
    completeness=None,
    noise_at=None,
    background=None,
    cutoff: float | None = None,
    init: str = "kmeans",
    reference=None,
    frozen=None,
    split_merge: int = 0,
    min_cells: int = 1,
    on_small_patient: str = "error",
):
    """Fit one Gaussian mixture per patient and choose its number of components.

    Parameters
    ----------
    data
        AnnData, changed in place; or a mapping of patient id to (n, D) array. Tables with texts for names of their rows are
        taken in the order of the names, as AnnData is; of other arrays the order counts.
    patient_col
        Column of ``obs`` that names the patient of every cell (AnnData); of several, such as ``["patient",
        "timepoint"]``, the texts are joined by ``_``, and ``obs["<gmm_key>_patient"]`` holds what came of it.
    use_rep
        Key of ``obsm`` to model (AnnData); None is X.
    component_sharing
        ``"sample_specific"``: an independent mixture per patient. ``"global"``: one mixture over all cells, every
        patient's weights being the mean responsibilities of its cells; where cells are corrected (noise, missing
        features, completeness, background), those of an EM on its cells with the components as they are. ``"auto"``:
        the first for AnnData, the second for a mapping.
    k_comps
        int, or a sequence of one: fixed, fitted on all cells. Longer sequence: candidates to select from. None: 1 to
        10, each patient up to what its cells can carry. A candidate of several that a patient has too few cells for is
        left out for that patient; a fixed k never is: see ``on_small_patient``.
    k_selection_metric
        ``"aic"``, ``"bic"`` (both in-sample on the training cells) or ``"heldout_nll"`` (nats per held-out cell).
    refit
        ``"none"``: keep the mixture of the training cells; ``"full"``: fit the chosen k on all cells.
    covariance_type
        ``"full"`` or ``"diag"``.
    train_size
        Share of every patient's cells that candidates are fitted on, in (0, 1]; 1 not with ``"heldout_nll"``.
    max_iter, tol, n_init, eps, singularity_handling, init, split_merge, cutoff
        See :func:`cohortgmm.fit_mixture`.
    noise
        Measurement noise. AnnData: a key of ``obsm``, ``{"obsm": key}``, ``{"layer": key}`` or an array, with variances
        (n, D), covariances (n, D, D) or these flattened, or one (D,) or (D, D) for all cells. Mapping: patient to such
        an array, or one for all. Where an array may be either, of n = D cells, :class:`~cohortgmm.Noise` around it says
        which.
    missing
        Whether NaN is a missing feature; otherwise it is an error.
    completeness, noise_at
        Callables, see :func:`cohortgmm.fit_mixture`; or gates as in the configuration, ``{"gates": [{"inside":
        {"PC1": [-5, None]}}]}``.
    background
        :class:`~cohortgmm.Background`, or its arguments as in the configuration (``{}``: the box of the patient's
        cells).
    reference
        :class:`~cohortgmm.GaussianMixture`, or a fit or the path of one, that all fits start from; without ``frozen``, its
        means and covariances stay, so that patients are mapped onto it.
    frozen
        Parameters of the reference that stay, see :func:`cohortgmm.fit_mixture`.
    gmm_key
        Key in ``uns``; None is ``gmm_<use_rep>`` (``gmm_X`` for X).
    verbose
        Print a line per patient.
    random_state
        Seed, an integer of at least 0. The mixture of a patient depends on it, the patient's id, its cells and k, not on
        the other patients.
    min_cells, on_small_patient
        What happens to a patient with fewer cells, or too few for every k: ``"error"`` stops, ``"drop"`` leaves it out
        (its cells get component -1). Cells without any feature do not count.
    n_jobs
        Patients fitted at the same time, or threads of the one fit of ``"global"`` sharing; -1 is one per core. It
        does not change the result.

    Returns
    -------
    AnnData or dict
        The AnnData with ``uns[gmm_key]``, ``obs["<gmm_key>_comp"]`` and ``obsm["<gmm_key>_resp"]``; for a mapping, a
        dict of patient id to :class:`~cohortgmm.GaussianMixture`.

    Raises
    ------
    ConfigError
        For arguments that cannot be used, all named at once.
    DataError
        For data that cannot be used.
    FitError
        For a fit that failed, naming patient and k.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> cohort = {"a": rng.normal(size=(300, 2)), "b": rng.normal(5, 1, size=(300, 2))}
    >>> models = fit_gmm(cohort, component_sharing="sample_specific", k_comps=1, verbose=False)
    >>> models["b"].means.round().tolist()
    [[5.0, 5.0]]
    """
    reference = None if reference is None else read_reference(reference)
    gmm = read_gmm_options(
        {
            "component_sharing": component_sharing,
            "k_comps": k_comps,
            "k_selection_metric": k_selection_metric,
            "refit": refit,
            "covariance_type": covariance_type,
            "train_size": train_size,
            "max_iter": max_iter,
            "tol": tol,
            "n_init": n_init,
            "eps": eps,
            "singularity_handling": singularity_handling,
            "gmm_key": gmm_key,
            "verbose": verbose,
            "missing": missing,
            "cutoff": cutoff,
            "init": init,
            "split_merge": split_merge,
            "noise": noise,
            "noise_at": noise_at,
            "completeness": completeness,
            "background": background,
            "reference": reference,
            "frozen": frozen,
        }
    )
    if reference is not None:
        gmm = gmm.for_reference(reference.n_components, reference.covariance_type, "fit_gmm")
    options = fit_options(gmm)
    if isinstance(random_state, bool) or not isinstance(random_state, (int, np.integer)) or random_state < 0:
        raise ConfigError(f"random_state must be an integer of at least 0, got {format_value(random_state)}")
    min_cells = check_count("min_cells", min_cells, 0)
    if not isinstance(on_small_patient, str) or on_small_patient not in ("error", "drop"):
        raise ConfigError(f"on_small_patient must be 'error' or 'drop', got {format_repr(on_small_patient)}")
    is_mapping = isinstance(data, Mapping)
    if is_mapping:
        cells, ids = cells_of_mapping(data, noise, missing, all_finite=False)
    else:
        patient_col = _as_list(patient_col)
        cells, ids = cells_of_anndata(data, patient_col, use_rep, noise, missing, all_finite=False)
    key = gmm.gmm_key or default_gmm_key(use_rep)
    if "/" in key:
        raise ConfigError(f"use_rep is {use_rep!r}, and a key of uns can have no '/': give gmm_key")
    sharing = gmm.component_sharing
    if sharing == "auto":
        sharing = "global" if is_mapping else "sample_specific"
    seed = int(random_state)
    split = split_patients(
        ids,
        names=cells.cell_names,
        train_size=gmm.effective_train_size,
        seed=seed,
        smallest_k=min(gmm.candidates),
        min_cells=min_cells,
        on_small_patient=on_small_patient,
        empty=cells.empty_cells() if missing or noise is not None else None,
    )
    name = "the data" if is_mapping else "X" if use_rep is None else f"obsm[{use_rep!r}]"
    check_finite(cells.matrix, ids, name, used=np.concatenate(list(split.positions.values())), missing=missing)
    if not is_mapping:
        _check_written(data, key, patient_col, use_rep, noise)
        n_mixtures = 1 if sharing == "global" else len(split.patients)
        check_size(n_mixtures, max(gmm.candidates), cells.matrix.shape[1])
    outcomes = _fit_parts(split, cells, sharing, gmm, options, seed, n_jobs)
    fits = {name: outcome.fit for name, outcome in outcomes.items()}
    assigned, weights = assign_components(
        fits, split.parts(cells, sharing), split.positions_of_parts(sharing), len(ids)
    )
    if is_mapping:
        if sharing == "sample_specific":
            return {patient: fit.model for patient, fit in fits.items()}
        (shared,) = fits.values()
        return {patient: _with_weights(shared.model, weights[patient]) for patient in split.patients}
    uns = build_uns(
        patients=split.patients,
        fits=fits,
        weights=weights,
        scores={name: outcome.rows for name, outcome in outcomes.items()},
        selection={name: outcome.choice for name, outcome in outcomes.items()},
        gmm=gmm,
        component_sharing=sharing,
        use_rep=use_rep,
        n_fit={name: outcome.n_fit for name, outcome in outcomes.items()},
        n_cells={patient: len(rows) for patient, rows in split.positions.items()},
        provenance={"cohortgmm": __version__, "numpy": np.__version__, "seed": seed},
    )
    uns["model"]["var"] = np.asarray(uns["model"]["var"])
    data.uns[key] = uns
    data.obs[f"{key}_comp"] = assigned.components
    data.obsm[f"{key}_resp"] = assigned.resp
    if (unit := joined_column(patient_col, key)) is not None:
        data.obs[unit] = ids
    data.obs.drop(columns=f"{key}_background", errors="ignore", inplace=True)
    if assigned.background is not None:
        data.obs[f"{key}_background"] = assigned.background
    return data


def _as_list(patient_col: Any) -> Any:
    """Columns that are given as an array, an index or a column of pandas, as a list."""
    return patient_col.tolist() if hasattr(patient_col, "tolist") and np.ndim(patient_col) == 1 else patient_col


def _check_written(data: Any, key: str, patient_col: str | Sequence[str], use_rep: str | None, noise: Any) -> None:
    """Refuse a key whose result would replace what is no earlier result, or what it is made from."""
    noise = noise.get("obsm") if isinstance(noise, Mapping) else noise if isinstance(noise, str) else None
    for name, what in overwritten(key, {"patient_col": patient_col}, {"use_rep": use_rep, "noise": noise}):
        raise ConfigError(f"the result overwrites {what} of {name}: give gmm_key")
    check_places(key, data.uns, data.obs.columns, data.obsm, patient_col=patient_col)


def _as_stored(fit: MixtureFit) -> MixtureFit:
    """A fit as its file gives it back, with no factors but those of its covariances: to the last bit as in the pipeline."""
    model = fit.model
    plain = GaussianMixture.from_factors(model.weights, model.means, model.covariances, None, model.background)
    return replace(fit, model=plain)


def _with_weights(model: GaussianMixture, weights: np.ndarray) -> GaussianMixture:
    """A shared mixture with the weights (K,) of one patient; what they lack of one is background."""
    background = model.background
    if background is not None:
        background = replace(background, amp=float(np.clip(1.0 - weights.sum(), 0.0, 1.0)), amp_min=0.0, amp_max=1.0)
    return GaussianMixture.from_factors(weights, model.means, model.covariances, model.factors, background)


def _fit_parts(
    split: Split, cells: Embedding, sharing: str, gmm: GmmConfig, options: Mapping[str, Any], seed: int, n_jobs: int
) -> dict[str, _Outcome]:
    """Fit every part; on several threads, as numpy releases the interpreter lock in its products."""

    workers, n_threads = _n_workers(n_jobs), 1
    if sharing == "global":
        workers, n_threads = 1, workers

    def fit(part: PatientCells) -> tuple[str, _Outcome]:
        return part.patient, _fit_part(part, gmm, options, seed, n_threads)

    parts = split.parts(cells, sharing)
    # One BLAS thread per fit: patients are independent, and the result does not depend on the machine.
    with one_blas_thread():
        if workers == 1:
            return dict(_report(map(fit, parts), sharing, gmm.verbose))
        with ThreadPoolExecutor(workers) as pool:
            return dict(_report(pool.map(fit, parts), sharing, gmm.verbose))


def _n_workers(n_jobs: int) -> int:
    if isinstance(n_jobs, (int, np.integer)) and n_jobs == -1:
        import os

        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, (int, np.integer)) or n_jobs < 1:
        raise ConfigError(f"n_jobs must be -1 or an integer of at least 1, got {format_value(n_jobs)}")
    return int(n_jobs)


def _report(outcomes: Iterator[tuple[str, _Outcome]], sharing: str, verbose: bool) -> Iterator[tuple[str, _Outcome]]:
    for name, outcome in outcomes:
        if verbose:
            title = "all patients" if sharing == "global" else format_text(name)
            choice = outcome.choice
            state = f"{outcome.fit.n_iter} iterations" if outcome.fit.converged else "not converged"
            print(
                f"[fit_gmm] {title}: k={choice['k']} by {choice['metric']} of {choice['n_candidates']} candidates, {state}",
                file=sys.stderr,
            )
        yield name, outcome


def _fit_part(part: PatientCells, gmm: GmmConfig, options: Mapping[str, Any], seed: int, n_threads: int) -> _Outcome:
    rows, fits, k = [], {}, None
    try:
        for k in gmm.candidates:
            row, fits[k] = fit_candidate(
                part, k, options, seed=seed, default_range=gmm.k_comps is None, n_threads=n_threads
            )
            rows.append(row)
        choice = select_k(rows, gmm.k_selection_metric)
        k = choice["k"]
        fit = _as_stored(final_fit(part, k, _as_stored(fits[k]), gmm.refit, options, seed=seed, n_threads=n_threads))
    except CohortgmmError as error:
        title = f"patient {part.patient!r}" if part.owner is None else part.patient
        error.args = (f"{title}, k={k}: {error}",)
        raise
    return _Outcome(rows, choice, fit, part.n_fit(gmm.refit))
