"""Cells, tables and files that the tests of the cohort share."""

import numpy as np
import pandas as pd
import pytest

from cohortgmm.cohort.cells import PatientCells


@pytest.fixture
def make_obs():
    """Factory: a table of cells with one column, their patients."""

    def make(values, name="patient"):
        return pd.DataFrame({name: values}, index=[f"c{i}" for i in range(len(values))])

    return make


@pytest.fixture
def make_part():
    """Factory: cells of two groups, 6 apart; the first half of them is fitted."""

    def make(patient="P1", n=60, n_features=2, *, n_train=None, seed=0, first_position=0):
        rng = np.random.default_rng([seed, *patient.encode()])
        x = rng.normal(size=(n, n_features)) + 6.0 * (np.arange(n) % 2)[:, None]
        return PatientCells(
            patient,
            x.astype(np.float32),
            np.arange(first_position, first_position + n),
            np.arange(n) < (n // 2 if n_train is None else n_train),
        )

    return make
