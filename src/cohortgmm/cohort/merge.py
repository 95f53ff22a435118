"""Writing the mixtures into a copy of the cohort, without loading its matrix."""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import h5py
import numpy as np
from anndata.io import write_elem

from cohortgmm import __version__
from cohortgmm.cohort.cells import PatientCells, read_positions
from cohortgmm.cohort.covariances import StackedCovariances, write_covariances
from cohortgmm.cohort.h5ad import n_rows, open_h5ad, read_obs, table_columns
from cohortgmm.cohort.links import copy_linked
from cohortgmm.cohort.occupied import check_file
from cohortgmm.cohort.patient_result import read_results
from cohortgmm.cohort.patients import patient_ids
from cohortgmm.cohort.tables import read_patients, scores_of
from cohortgmm.cohort.texts import column_list
from cohortgmm.cohort.uns import CellAssignment, assign_components, build_uns
from cohortgmm.columns import joined_column
from cohortgmm.config.gmm import GmmConfig
from cohortgmm.display import format_path
from cohortgmm.storage.atomic import atomic_path
from cohortgmm.storage.names import ALL_PATIENTS

logger = logging.getLogger(__name__)


def merge_models(
    cohort: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    cells: Sequence[str],
    models: Sequence[str],
    positions: str | os.PathLike[str],
    table: str | os.PathLike[str],
    scores: str | os.PathLike[str],
    source: str | os.PathLike[str],
    patient_col: str | Sequence[str],
    gmm: Mapping[str, Any],
    component_sharing: str,
    use_rep: str | None,
    gmm_key: str,
    seed: int,
    config: str,
) -> None:
    """Gather the results of the pipeline in a copy of the cohort.

    Parameters
    ----------
    cohort
        The ``.h5ad`` with the embedding.
    target
        The copy.
    cells, models
        Array file and final mixture of every unit of fitting, in the same order.
    positions
        File with the rows of the cohort that hold the cells of every unit.
    table, scores
        The tables of patients and of all scores.
    source
        The input that the cohort was made from.
    patient_col, gmm, component_sharing, use_rep, gmm_key, seed, config
        As in the configuration; ``config`` is the whole configuration as JSON.
    """
    options = GmmConfig(**gmm)
    rows = read_patients(table, {"n_cells": int})
    patients = {row["patient"]: row["n_cells"] for row in rows if row["status"] == "ok"}
    names = [ALL_PATIENTS] if component_sharing == "global" else list(patients)
    results = {one.name: one for one in read_results(cells, models, options.refit, scores_of(scores, names))}
    with open_h5ad(cohort) as file:
        check_file(file, gmm_key, patient_col)
        n_cells = n_rows(file, "obs")
        column, columns = joined_column(patient_col, gmm_key), {}
        if column is not None:
            columns[column] = patient_ids(read_obs(file, column_list(patient_col)), patient_col)
    ordered = [results[name] for name in names]
    units = map(PatientCells.load, cells)
    assigned, weights = assign_components(ordered, units, read_positions(positions), n_cells)
    uns = build_uns(
        patients,
        ordered,
        weights,
        options,
        component_sharing,
        use_rep=use_rep,
        provenance={
            "cohortgmm": __version__,
            "numpy": np.__version__,
            "anndata": version("anndata"),
            "seed": seed,
            "config": config,
            "source": format_path(source),
            "source_sha256": _sha256(source),
        },
    )
    write_gmm(cohort, target, gmm_key, uns, assigned, columns)


def _sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_gmm(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    gmm_key: str,
    uns: Mapping[str, Any],
    assigned: CellAssignment,
    columns: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Copy an ``.h5ad`` and add mixtures to the copy; everything else stays as it is.

    Parameters
    ----------
    source, target
        The original file and its copy; the copy gets its name only when it is complete.
    gmm_key
        Key in ``uns``. An earlier result under it is replaced, see :func:`~cohortgmm.cohort.occupied.check_file`.
    uns
        The content of ``uns[gmm_key]``, see :func:`~cohortgmm.cohort.uns.build_uns`.
    assigned
        The assignment of the cells. It is written to ``obs["<gmm_key>_comp"]``, ``obsm["<gmm_key>_resp"]`` and, with a
        background, ``obs["<gmm_key>_background"]``.
    columns
        Further columns of ``obs`` by name.
    """
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        with open_h5ad(source) as original, h5py.File(temporary, "r+") as file:
            copy_linked(original, file)
            for group in ("uns", "obsm"):
                if group not in file:
                    write_elem(file, group, {})
            _write_uns(file["uns"], gmm_key, uns)
            write_elem(file["obsm"], f"{gmm_key}_resp", assigned.resp)
            _write_obs_column(file, f"{gmm_key}_comp", assigned.components)
            _write_obs_column(file, f"{gmm_key}_background", assigned.background)
            for name, values in (columns or {}).items():
                _write_obs_column(file, name, values)
    logger.info("wrote %s with uns[%r], obs[%r], obsm[%r]", target, gmm_key, f"{gmm_key}_comp", f"{gmm_key}_resp")


def _write_uns(group: h5py.Group, gmm_key: str, uns: Mapping[str, Any]) -> None:
    """Write the mixtures; stacked covariances are written one by one."""
    stacked = uns["model"].get("var")
    if not isinstance(stacked, StackedCovariances):
        write_elem(group, gmm_key, dict(uns))
        return
    model = {name: values for name, values in uns["model"].items() if name != "var"}
    write_elem(group, gmm_key, {**uns, "model": model})
    write_covariances(group[gmm_key]["model"], "var", stacked)


def _write_obs_column(file: h5py.File, name: str, values: np.ndarray | None) -> None:
    """Write a column and replace one of the same name; None only removes it."""
    obs = file["obs"]
    order = [column for column in table_columns(file, "obs") if column != name]
    if values is None:
        obs.pop(name, None)
    else:
        write_elem(obs, name, values)
        order.append(name)
    obs.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())
