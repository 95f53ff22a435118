"""Gates by their definition, on their edges, and where features are missing."""

import itertools

import numpy as np
import pytest

from cohortgmm.cohort.gates import Gates
from cohortgmm.config.gmm import GateConfig
from cohortgmm.errors import ConfigError

NAMES = ("PC1", "PC2", "PC3")
#: Every combination of three values a feature, on the bounds that the gates below have and beside them.
PLACES = np.array(list(itertools.product((-1.0, 0.0, 0.5, 1.0, 7.0), repeat=3)))


def gates(*descriptions, function=None, names=NAMES):
    return Gates([GateConfig(**description).model_dump() for description in descriptions], function, names)


def refusal(*args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        gates(*args, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("gate", "passes"),
    [
        ({"inside": {"PC2": [0, 1]}}, lambda a, b, c: 0 <= b <= 1),
        ({"inside": {"PC2": [0, None]}}, lambda a, b, c: b >= 0),
        ({"inside": {"PC2": [None, 0.5]}}, lambda a, b, c: b <= 0.5),
        ({"inside": {"PC1": [0, 1], "PC3": [None, 0]}}, lambda a, b, c: 0 <= a <= 1 and c <= 0),
        ({"outside": {"PC3": [0, 1]}}, lambda a, b, c: not 0 <= c <= 1),
        ({"outside": {"PC3": [0.5, None]}}, lambda a, b, c: not c >= 0.5),
        ({"outside": {"PC1": [0, 1], "PC2": [0, 1]}}, lambda a, b, c: not (0 <= a <= 1 and 0 <= b <= 1)),
        ({"half_space": {"PC1": 1.0}}, lambda a, b, c: a >= 0),
        ({"half_space": {"PC1": -2.0, "PC3": 1.0}, "at_least": -1.0}, lambda a, b, c: -2 * a + c >= -1),
        ({"half_space": {"PC2": 1.0, "PC3": 1.0}, "at_least": 1.5}, lambda a, b, c: b + c >= 1.5),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_gate_lets_through_what_its_definition_says(gate, passes):
    """The bounds themselves belong to a box, to a hole and to a half-space."""
    expected = [float(passes(*place)) for place in PLACES]
    assert 0 < sum(expected) < len(PLACES)
    np.testing.assert_array_equal(gates(gate)(PLACES), expected)


def test_a_cell_must_pass_all_gates():
    three = (
        {"inside": {"PC1": [-0.5, 5]}},
        {"outside": {"PC1": [0.5, 2], "PC2": [0.5, 2]}},
        {"half_space": {"PC3": -1.0}, "at_least": -1.0},
    )
    each = [gates(gate)(PLACES) for gate in three]
    together = gates(*three)(PLACES)
    np.testing.assert_array_equal(together, np.prod(each, axis=0))
    assert sum(together) not in (0, *(values.sum() for values in each))
    np.testing.assert_array_equal(gates(*reversed(three))(PLACES), together)


EDGES = [5.3, -1.1, 0.1, 1e-3, 12345.678]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "gate",
    [
        lambda edge: {"inside": {"a": [None, edge]}},
        lambda edge: {"inside": {"a": [edge, None]}},
        lambda edge: {"half_space": {"a": 1.0}, "at_least": edge},
        lambda edge: {"half_space": {"a": -1.0}, "at_least": -edge},
        lambda edge: {"half_space": {"a": 0.3, "b": 0.7}, "at_least": edge},
    ],
    ids=["upper", "lower", "half", "other half", "slanted"],
)
def test_a_cell_on_an_edge_is_in_the_data_however_it_was_rounded(edge, dtype, gate):
    x = np.full((1, 2), edge, dtype=dtype)
    passes = Gates([GateConfig(**gate(edge)).model_dump()], None, ("a", "b"), dtype)
    assert passes(x.astype(float)).tolist() == [1.0]
    step = 1e-12 if dtype == np.float64 else 20 * float(np.finfo(dtype).eps)
    apart = {passes(np.full((1, 2), edge + sign * step * abs(edge)))[0] for sign in (-1, 1)}
    assert apart == {0.0, 1.0}  # a little off, it is on one side only


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("side", [0, 1])
def test_a_cell_just_outside_a_hole_is_in_the_data_though_it_is_rounded_onto_its_edge(edge, side):
    hole = [edge, None] if side == 0 else [None, edge]
    passes = Gates([GateConfig(outside={"a": hole}).model_dump()], None, ("a",), np.float32)
    beyond = np.float32(edge + (1e-10 if side else -1e-10) * abs(edge))
    assert passes(np.array([[float(beyond)]])).tolist() == [1.0]
    within = edge + (-1e-5 if side else 1e-5) * abs(edge)
    assert passes(np.array([[within]])).tolist() == [0.0]


def test_gates_and_a_function_multiply():
    def half_of_negative(x):
        assert x is PLACES
        return np.where(x[:, 0] < 0, 0.5, 0.25)

    both = gates({"inside": {"PC2": [0, 1]}}, function=half_of_negative)(PLACES)
    inside = (PLACES[:, 1] >= 0) & (PLACES[:, 1] <= 1)
    np.testing.assert_array_equal(both, inside * np.where(PLACES[:, 0] < 0, 0.5, 0.25))


def test_gates_find_their_features_by_name():
    x = np.array([[0.0, 9.0], [9.0, 0.0]])
    gate = {"inside": {"CD3": [5, None]}}
    assert gates(gate, names=("CD3", "CD4"))(x).tolist() == [0, 1]
    assert gates(gate, names=("CD4", "CD3"))(x).tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["inside", "outside", "half_space"])
def test_an_unknown_feature_is_named_with_those_there_are(kind):
    gate = {kind: {"pc1": 1.0 if kind == "half_space" else [0, 1]}}
    assert refusal(gate) == "gmm.completeness: no feature 'pc1'; known: PC1, PC2, PC3"
    many = tuple(f"g{i}" for i in range(13))
    assert refusal(gate, names=many) == (
        "gmm.completeness: no feature 'pc1'; known: g0, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11, ..."
    )
    assert refusal(gate, names=many[:12]).endswith("g10, g11")


@pytest.mark.parametrize(
    "gate",
    [{"inside": {"PC1": [0, 1]}}, {"outside": {"PC1": [0, 1]}}, {"half_space": {"PC1": 1.0, "PC2": 1.0}}],
    ids=["inside", "outside", "half_space"],
)
def test_a_gate_cannot_tell_without_its_feature(gate):
    x = np.array([[np.nan, 0.5, 0.5], [0.5, 0.5, np.nan], [3.0, 3.0, 3.0]])
    values = gates(gate)(x)
    assert np.isnan(values[0])
    np.testing.assert_array_equal(values[1:], gates(gate)(np.nan_to_num(x))[1:])
    if "half_space" in gate:
        assert np.isnan(gates(gate)(np.array([[1.0, np.nan, 0.0]]))[0])


def test_a_missing_feature_that_decides_nothing_does_not_matter():
    """Cells outside a hole in one of its features are outside whatever the other one is."""
    hole = gates({"outside": {"PC1": [0, 1], "PC2": [0, 1]}})
    box = gates({"inside": {"PC1": [0, 1], "PC2": [0, 1]}})
    x = np.array([[5.0, np.nan, 0.0], [np.nan, 5.0, 0.0]])
    np.testing.assert_array_equal(hole(x), [1, 1])
    np.testing.assert_array_equal(box(x), [0, 0])
