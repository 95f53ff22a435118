"""A fit and its file."""

from dataclasses import fields
from io import BytesIO

import numpy as np
import pytest

from cohortgmm.errors import DataError
from cohortgmm.mixture.fit import fit_mixture
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.result import MixtureFit

COVARIANCE_TYPES = ["full", "diag"]
BACKGROUNDS = {
    "none": None,
    "fitted": Background([-3.0, -1.0], [4.0, 2.5], 0.125, amp_min=0.1, amp_max=0.75),
    "fixed": Background([-3.0, -1.0], [4.0, 2.5], 0.25, adjust_amp=False),
}


def assert_same(left, right):
    """The same in every bit and type."""
    for field in fields(MixtureFit):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if field.name == "model":
            assert list(one.arrays()) == list(other.arrays())
            for name, array in one.arrays().items():
                assert np.array_equal(array, other.arrays()[name]), name
            assert one.covariance_type == other.covariance_type
        else:
            assert type(one) is type(other), field.name
            assert np.array_equal(one, other), field.name
            if isinstance(one, np.ndarray):
                assert one.dtype == other.dtype


@pytest.fixture(params=COVARIANCE_TYPES)
def fit(request, make_mixture):
    """A fit in which no field has the value that it would have by default, or that of another."""
    model = make_mixture(3, 2, request.param).with_background(BACKGROUNDS["fitted"])
    history = np.array([-9.5, -4.25, -1 / 3])
    return MixtureFit(model, float(history[-1]), 2, True, history, np.array([False, True, False]), 12.75, 0.875, 3)


@pytest.mark.parametrize("background", list(BACKGROUNDS))
@pytest.mark.parametrize("converged", [True, False])
def test_a_file_holds_every_field(tmp_path, fit, background, converged):
    model = GaussianMixture(fit.model.weights / fit.model.weights.sum(), fit.model.means, fit.model.covariances)
    if BACKGROUNDS[background] is not None:
        model = model.with_background(BACKGROUNDS[background])
    fit = MixtureFit(model, fit.log_likelihood, 2, converged, fit.history, fit.floored, 12.75, 0.875, 3)
    path = tmp_path / "fit.npz"
    fit.save(path)
    loaded = MixtureFit.load(path)
    assert_same(fit, loaded)
    if model.background is None:
        assert loaded.model.background is None
    else:
        for name in ("amp", "amp_min", "amp_max", "adjust_amp"):
            value = getattr(loaded.model.background, name)
            assert value == getattr(model.background, name)
            assert type(value) is (bool if name == "adjust_amp" else float)
    for name, array in GaussianMixture.load(path).arrays().items():
        assert np.array_equal(array, model.arrays()[name])


def test_a_file_may_be_a_stream(tmp_path, fit):
    stream, path = BytesIO(), tmp_path / "fit.npz"
    fit.save(stream)
    path.write_bytes(stream.getvalue())
    assert_same(fit, MixtureFit.load(str(path)))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_a_real_fit_is_the_same_after_its_file(tmp_path, make_cells, covariance_type):
    x = make_cells(150, 2)
    x = x[x[:, 0] > 0]
    x[0] = np.nan
    x[1, 1] = np.nan
    fit = fit_mixture(
        x,
        2,
        covariance_type=covariance_type,
        noise=np.array([0.1, 0.2]),
        background=Background([-9.0, -9.0], [9.0, 9.0], 0.1),
        completeness=lambda places: (places[:, 0] > 0).astype(float),
        n_init=2,
    )
    assert fit.n_unobserved > 0
    assert fit.completeness < 1
    assert fit.n_empty == 1
    fit.save(tmp_path / "fit.npz")
    loaded = MixtureFit.load(tmp_path / "fit.npz")
    assert_same(fit, loaded)
    places = np.random.default_rng(0).normal(size=(20, 2))
    assert np.array_equal(fit.model.log_prob(places), GaussianMixture.load(tmp_path / "fit.npz").log_prob(places))


def test_a_plain_fit_has_seen_everything(make_cells):
    fit = fit_mixture(make_cells(50, 2), 2)
    assert (fit.n_unobserved, fit.completeness, fit.n_empty) == (0.0, 1.0, 0)
    made = MixtureFit(fit.model, fit.log_likelihood, fit.n_iter, fit.converged, fit.history, fit.floored)
    assert_same(fit, made)


@pytest.mark.parametrize(
    "missing", ["n_iter", "converged", "history", "floored", "n_unobserved", "completeness", "n_empty"]
)
def test_a_file_without_one_of_the_fields_is_no_fit(tmp_path, fit, missing):
    fit.save(tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as archive:
        np.savez(tmp_path / "part.npz", **{name: archive[name] for name in archive.files if name != missing})
    with pytest.raises(DataError, match=rf"part\.npz holds no fit: {missing} missing"):
        MixtureFit.load(tmp_path / "part.npz")


def test_the_file_of_a_mixture_is_no_fit(tmp_path, fit):
    fit.model.save(tmp_path / "model.npz")
    with pytest.raises(DataError, match="holds no fit"):
        MixtureFit.load(tmp_path / "model.npz")
    (tmp_path / "text.npz").write_text("weights")
    with pytest.raises(DataError, match="not a readable"):
        MixtureFit.load(tmp_path / "text.npz")


def test_a_fit_tells_what_it_is_in_one_line(fit):
    text = repr(fit)
    assert "\n" not in text
    assert "n_components=3" in text
    assert "background=0.125" in text
    assert text.endswith("log_likelihood=-0.333333, n_iter=2, converged)")
    other = MixtureFit(fit.model, -1.0, 2, False, fit.history, fit.floored)
    assert repr(other).endswith("not converged)")
