"""The names that scikit-learn's users type mean what they mean there."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture as Peer
from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

from cohortgmm import Background, GaussianMixture, fit_mixture
from cohortgmm.errors import DataError


def as_peer(model):
    """The same mixture of scikit-learn."""
    peer = Peer(model.n_components, covariance_type=model.covariance_type)
    peer.weights_, peer.means_, peer.covariances_ = model.weights, model.means, model.covariances
    peer.precisions_cholesky_ = _compute_precision_cholesky(model.covariances, model.covariance_type)
    return peer


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_the_methods_return_what_scikit_learn_returns(make_mixture, covariance_type):
    model = make_mixture(3, 4, covariance_type, spread=1.0)
    x, peer = model.sample(200, 1)[0], as_peer(model)
    assert np.array_equal(model.predict(x), peer.predict(x))
    for name in ("predict_proba", "score_samples", "score", "aic", "bic"):
        np.testing.assert_allclose(getattr(model, name)(x), getattr(peer, name)(x), rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_criteria_are_those_of_a_fit(make_cells):
    x = make_cells(300, 2)
    model = fit_mixture(x, 3).model
    n_parameters = 3 * 2 + 3 * 3 + 2
    assert model.aic(x) == pytest.approx(-2 * 300 * model.score(x) + 2 * n_parameters, rel=1e-12)
    assert model.bic(x) == pytest.approx(-2 * 300 * model.score(x) + n_parameters * np.log(300), rel=1e-12)


def test_the_background_is_minus_one_and_a_parameter_of_its_own(make_mixture):
    model = make_mixture(2, 2, spread=6.0)
    with_box = model.with_background(Background([-50.0, -50.0], [50.0, 50.0], 0.1))
    x = np.array([model.means[0], [40.0, 40.0]])
    assert with_box.predict(x).tolist() == [0, -1]
    assert with_box.predict_proba(x)[1].sum() == pytest.approx(0.0, abs=1e-12)
    assert with_box.aic(x) - 2 * (-with_box.log_prob(x).sum()) == pytest.approx(2 * (2 * 2 + 2 * 3 + 1 + 1))


def test_noise_and_missing_features_go_with_every_name(make_mixture):
    model = make_mixture(2, 3, spread=1.0)
    x, noise = model.sample(20, 0)[0], np.full((20, 3), 0.5)
    x[::4, 1] = np.nan
    assert np.array_equal(model.score_samples(x, noise), model.log_prob(x, noise))
    assert np.array_equal(model.predict(x, noise), model.responsibilities(x, noise).argmax(axis=1))
    assert model.score(x, noise) == model.log_prob(x, noise).mean()


def test_no_cells_have_no_score():
    with pytest.raises(DataError, match="at least one cell"):
        GaussianMixture([1.0], [[0.0]], [[[1.0]]]).score(np.empty((0, 1)))
