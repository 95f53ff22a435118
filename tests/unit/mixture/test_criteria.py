"""Information criteria against scikit-learn and by hand."""

import math

import pytest
from sklearn.mixture import GaussianMixture as SklearnMixture

from cohortgmm.mixture.criteria import aic, bic, n_free_parameters


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
@pytest.mark.parametrize("n_components", [1, 3])
@pytest.mark.parametrize("n_features", [1, 2, 5])
def test_criteria_are_those_of_scikit_learn(make_cells, n_components, n_features, covariance_type):
    x = make_cells(200, n_features, spread=8.0)
    theirs = SklearnMixture(n_components, covariance_type=covariance_type, random_state=0, tol=0.1).fit(x)
    p = n_free_parameters(n_components, n_features, covariance_type)
    total = theirs.score(x) * len(x)
    assert p == theirs._n_parameters()
    assert aic(total, p) == pytest.approx(theirs.aic(x), rel=1e-13)  # the same sum, added in another order
    assert bic(total, p, len(x)) == pytest.approx(theirs.bic(x), rel=1e-13)


@pytest.mark.parametrize(
    ("covariance_type", "expected"),
    [("full", 2 * 3 + 2 * 6 + 1), ("diag", 2 * 3 + 2 * 3 + 1)],
)
def test_free_parameters_by_hand_for_two_components_in_three_features(covariance_type, expected):
    assert n_free_parameters(2, 3, covariance_type) == expected


def test_criteria_by_hand():
    assert aic(-100.0, 7) == 214.0
    assert bic(-100.0, 7, 50) == 200.0 + 7 * math.log(50)
