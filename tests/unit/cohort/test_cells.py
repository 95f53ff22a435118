"""Seeds that depend on nothing else, and the array file of a patient."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortgmm.cohort.cells import PatientCells, choose_train_cells, derived_seed, read_positions, write_positions
from cohortgmm.storage.names import COHORT


def test_a_seed_depends_on_run_patient_and_k_only():
    def state(*arguments):
        return tuple(derived_seed(*arguments).generate_state(4))

    states = [state(0, "P1"), state(1, "P1"), state(0, "P2"), state(0, "P1", 1), state(0, "P1", 2), state(0, "")]
    assert len(set(states)) == 6
    assert state(0, "P1", 2) == states[4]
    # On every machine:
    assert np.random.default_rng(derived_seed(0, "患者", 3)).integers(1000, size=4).tolist() == [331, 730, 538, 668]


def chosen(n, train_size, *, seed=0, patient="P1"):
    return choose_train_cells([f"cell {i}" for i in range(n)], train_size, seed=seed, patient=patient)


@given(n=st.integers(2, 200), train_size=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_the_share_of_fitted_cells(n, train_size, seed):
    mask = chosen(n, train_size, seed=seed)
    assert mask.dtype == bool
    assert mask.shape == (n,)
    assert mask.sum() == min(max(1, round(train_size * n)), n - 1)


def test_all_cells_are_fitted_where_nothing_is_held_out():
    assert chosen(7, 1.0).all()
    assert chosen(10, 0.999).sum() == 9
    assert chosen(10, 0.001).sum() == 1


def test_the_choice_is_uniform_over_seeds_and_over_patients():
    for counts in (
        sum(chosen(10, 0.3, seed=seed).astype(int) for seed in range(2000)),
        sum(chosen(10, 0.3, patient=f"P{i}").astype(int) for i in range(2000)),
    ):
        assert counts.sum() == 6000
        assert np.abs(counts - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)


def test_the_choice_depends_on_seed_patient_and_names_only():
    first = chosen(50, 0.5)
    np.testing.assert_array_equal(chosen(50, 0.5), first)
    assert not np.array_equal(chosen(50, 0.5, seed=1), first)
    assert not np.array_equal(chosen(50, 0.5, patient="P2"), first)
    # On every machine:
    names = [*"abcdefgh", "\udcff", "患"]
    assert np.flatnonzero(choose_train_cells(names, 0.3, seed=3, patient="患者")).tolist() == [0, 1, 6]


@given(
    names=st.lists(st.text(max_size=4), min_size=2, max_size=40, unique=True),
    train_size=st.floats(0.05, 0.95),
    random=st.randoms(use_true_random=False),
)
def test_other_cells_change_the_side_of_one_cell_at_most(names, train_size, random):
    """The order of the cells changes nothing; a cell more or less changes the side of one other cell at most."""

    def sides(names):
        return dict(zip(names, choose_train_cells(names, train_size, seed=0, patient="P1").tolist(), strict=True))

    before = sides(names)
    shuffled = names.copy()
    random.shuffle(shuffled)
    assert sides(shuffled) == before
    if len(names) > 2:
        after = sides(shuffled[1:])
        assert sum(before[name] != side for name, side in after.items()) <= 1


def test_positions_are_read_as_they_were_written(tmp_path):
    positions = {"NA": np.array([4, 1, 9]), "a/b 患": np.array([], dtype=int), "file": np.array([0])}
    write_positions(tmp_path / "positions.npz", positions)
    read = read_positions(tmp_path / "positions.npz")
    assert {patient: rows.tolist() for patient, rows in read.items()} == {"NA": [4, 1, 9], "a/b 患": [], "file": [0]}
    assert all(rows.dtype == np.int64 for rows in read.values())


def test_names_of_cells_are_saved(tmp_path):
    names = np.array([text.encode(errors="surrogatepass") for text in ("c1", "zelle ü", "\udcff")])
    PatientCells("P1", np.eye(3), np.ones(3, bool), cell_names=names).save(tmp_path / "p.npz")
    loaded = PatientCells.load(tmp_path / "p.npz")
    assert [loaded.cell_name(i) for i in range(3)] == ["'c1'", "'zelle ü'", "'\\udcff'"]
    assert PatientCells("P1", np.eye(3), np.ones(3, bool)).cell_name(2) == "2"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_a_file_gives_back_what_was_saved(tmp_path, dtype):
    cells = PatientCells("a/b 患", np.arange(6, dtype=dtype).reshape(3, 2), np.array([1, 0, 1]) > 0)
    cells.save(tmp_path / "new" / "p.npz")
    loaded = PatientCells.load(tmp_path / "new" / "p.npz")
    assert loaded.patient == "a/b 患"
    assert loaded.x.dtype == dtype
    np.testing.assert_array_equal(loaded.x, cells.x)
    np.testing.assert_array_equal(loaded.train, cells.train)
    assert loaded.n_train == 2
    assert loaded.owner is None
    assert loaded.patients is None


def test_the_cells_of_a_cohort_keep_their_owners(tmp_path):
    cells = PatientCells(COHORT, np.eye(3), np.ones(3, bool), np.array([0, 1, 1]), ("NA", "b"))
    cells.save(tmp_path / "p.npz")
    loaded = PatientCells.load(tmp_path / "p.npz")
    assert loaded.owner.tolist() == [0, 1, 1]
    assert loaded.patients == ("NA", "b")


def test_the_same_cells_leave_the_file_alone(tmp_path):
    cells = PatientCells("P1", np.eye(3), np.ones(3, bool))
    path = tmp_path / "p.npz"
    cells.save(path)
    os.utime(path, ns=(10**18, 10**18))
    cells.save(path)
    assert path.stat().st_mtime_ns == 10**18
    PatientCells("P1", 2 * np.eye(3), np.ones(3, bool)).save(path)
    assert path.stat().st_mtime_ns != 10**18
    assert PatientCells.load(path).x[0, 0] == 2


VARIANCES = np.array([[np.inf, 1.0], [2.0, 3.0], [4.0, 5.0]])
COVARIANCES = np.array([[[1.0, 0.5], [0.5, 2.0]], [[3.0, 0.0], [0.0, 0.0]], [[4.0, -1.0], [-1.0, 5.0]]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("noise", [VARIANCES, COVARIANCES], ids=["variances", "covariances"])
def test_noise_and_names_of_features_are_saved(tmp_path, noise, dtype):
    noise = noise.astype(dtype)
    cells = PatientCells("P1", np.eye(3)[:, :2], np.array([1, 0, 1]) > 0, noise=noise, feature_names=("CD3 α", "NA"))
    cells.save(tmp_path / "p.npz")
    loaded = PatientCells.load(tmp_path / "p.npz")
    assert loaded.noise.dtype == dtype
    np.testing.assert_array_equal(loaded.noise, noise)
    assert loaded.feature_names == ("CD3 α", "NA")
    for rows, expected in (((), noise), ((loaded.train,), noise[[0, 2]]), ((np.array([2, 0]),), noise[[2, 0]])):
        some = loaded.noise_of(*rows)  # two cells of two features: no covariance of all of them
        assert not some.is_shared
        np.testing.assert_array_equal(some.values, expected)
        assert some.values.dtype == dtype


def test_without_noise_there_is_none(tmp_path):
    cells = PatientCells("P1", np.eye(3), np.ones(3, bool))
    cells.save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as file:
        assert "noise" not in file.files
    loaded = PatientCells.load(tmp_path / "p.npz")
    assert loaded.noise is None
    assert loaded.noise_of(loaded.train) is None
    assert loaded.feature_names == ()


def test_another_noise_or_name_is_another_file(tmp_path):
    def save(noise=None, names=("a", "b", "c")):
        path = tmp_path / "p.npz"
        if path.exists():
            os.utime(path, ns=(10**18, 10**18))
        PatientCells("P1", np.eye(3), np.ones(3, bool), noise=noise, feature_names=names).save(path)
        return path.stat().st_mtime_ns != 10**18

    assert save()
    assert not save()
    assert save(noise=np.ones((3, 3)))
    assert not save(noise=np.ones((3, 3)))
    assert save(noise=2 * np.ones((3, 3)))
    assert save(noise=2 * np.ones((3, 3)), names=("a", "b", "d"))


@pytest.mark.parametrize("shape", ["variances", "covariances"])
def test_features_are_missing_by_their_value_or_by_their_noise(tmp_path, shape):
    x = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0], [7.0, 8.0]], dtype=np.float32)
    variances = np.array([[0.1, 0.1], [0.1, np.nan], [np.inf, 0.1], [np.inf, np.inf]])
    noise = variances if shape == "variances" else variances[:, :, None] * np.where(np.eye(2), 1.0, np.nan)
    if shape == "covariances":
        noise[0] = [[0.1, 0.05], [0.05, 0.1]]
    part = PatientCells("P1", x, np.ones(4, bool), noise=noise, feature_names=("a", "b"))
    part.save(tmp_path / "x.npz")
    for cells in (part, PatientCells.load(tmp_path / "x.npz")):
        assert np.isnan(cells.measured()).tolist() == [[False, False], [False, True], [True, False], [True, True]]
        assert cells.has_features.tolist() == [True, True, True, False]
        assert np.isinf(cells.noise_of([1]).variances()).tolist() == [[False, True]]
