"""Cells, tables and files that the tests of the cohort share."""

import numpy as np
import pandas as pd
import pytest
from corrected import make_corrected

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.cohort.patient_result import PatientResult


@pytest.fixture
def results_of():
    """Factory: results of units of fitting of these mixtures, by name."""

    def make(fits):
        return [PatientResult(name, fit, 0, 0) for name, fit in fits.items()]

    return make


@pytest.fixture
def make_obs():
    """Factory: a table of cells with one column, their patients."""

    def make(values, name="patient"):
        return pd.DataFrame({name: values}, index=[f"c{i}" for i in range(len(values))])

    return make


@pytest.fixture
def make_part():
    """Factory: cells of two groups, 6 apart; the first half of them is fitted."""

    def make(patient="P1", n=60, n_features=2, *, n_train=None, seed=0):
        rng = np.random.default_rng([seed, *patient.encode()])
        x = rng.normal(size=(n, n_features)) + 6.0 * (np.arange(n) % 2)[:, None]
        return PatientCells(
            patient,
            x.astype(np.float32),
            np.arange(n) < (n // 2 if n_train is None else n_train),
            feature_names=tuple(f"PC{i + 1}" for i in range(n_features)),
        )

    return make


@pytest.fixture
def make_corrected_part():
    """Factory: cells with noise, gaps, a gate and debris, of which two have no feature; every other is fitted."""

    def make(patient="P1", n=80, n_features=2, *, empty=(4, 7), all_fitted=False):
        cohort = make_corrected([patient], n, n_features)
        x = cohort.obsm["X_pca"]
        x[list(empty)] = np.nan
        train = np.ones(n, bool) if all_fitted else np.arange(n) % 2 == 0
        names = tuple(f"PC{i + 1}" for i in range(n_features))
        return PatientCells(patient, x, train, noise=cohort.obsm["X_pca_var"], feature_names=names)

    return make
