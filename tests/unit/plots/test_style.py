import itertools

import matplotlib
import numpy as np
import pytest

from cohortgmm.errors import ConfigError
from cohortgmm.plots.style import (
    CELL_TYPES,
    COMPONENTS,
    component_colors,
    label_points,
    natural_key,
    new_figure,
    save_figure,
    short_label,
    short_labels,
)


def test_palettes_hold_24_components_and_12_types_all_different():
    assert len(set(COMPONENTS)) == 24
    assert len(set(CELL_TYPES)) == 12
    for palette in (COMPONENTS, CELL_TYPES):
        rgb = matplotlib.colors.to_rgba_array(palette)
        assert min(np.abs(a - b).max() for a, b in itertools.combinations(rgb, 2)) > 0.1


def test_component_colors_depend_on_the_component_alone():
    np.testing.assert_array_equal(component_colors([5, 0])[0], component_colors([5])[0])
    np.testing.assert_array_equal(component_colors([24]), component_colors([0]))
    red, green, blue, _ = component_colors([-1])[0]
    assert red == green == blue


@pytest.mark.parametrize(
    ("text", "width", "label"),
    [
        ("P1", 10, "P1"),
        ("a\n b\t c", 10, "a b c"),
        ("cost $5$", 20, r"cost \$5\$"),
        ("abcdefghijkl", 7, "abc…jkl"),
        (17, 5, "17"),
    ],
)
def test_short_label(text, width, label):
    assert short_label(text, width) == label


def test_short_labels_keep_what_tells_long_names_apart():
    names = [f"University hospital, cohort B, patient {i}, baseline visit of week 00" for i in range(200)]
    labels = short_labels([*names, "P1"], 24)
    assert len(set(labels)) == 201
    assert max(map(len, labels)) <= 24
    assert labels[-1] == "P1"


def test_dollars_are_drawn_as_dollars():
    figure = new_figure(2, 2)
    renderer = figure.canvas.get_renderer()
    escaped = figure.text(0, 0, short_label("$a_1$ $b^2$"))
    plain = figure.text(0, 0, "$a_1$ $b^2$", parse_math=False)
    assert escaped.get_window_extent(renderer).width == pytest.approx(plain.get_window_extent(renderer).width, abs=1)


def test_natural_key_orders_numbers_and_mixed_ids():
    assert sorted(["P10", "P2", "2", "x", "10"], key=natural_key) == ["2", "10", "P2", "P10", "x"]


@pytest.mark.parametrize("boxed", [True, False])
def test_label_points_on_one_spot_do_not_pile_up(boxed, assert_legible):
    figure = new_figure(4, 4)
    ax = figure.add_axes((0.1, 0.1, 0.8, 0.8), xticks=[], yticks=[])
    placed = label_points(ax, np.full(30, 0.5), np.full(30, 0.5), [f"label {i}" for i in range(30)], boxed=boxed)
    assert 5 <= len(placed) < 30
    assert [note.get_text() for note in placed[:3]] == ["label 0", "label 1", "label 2"]
    assert_legible(figure)


def test_save_figure_refuses_other_suffixes(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.pdf"):
        save_figure(new_figure(1, 1), tmp_path / "a.pdf")


def test_save_figure_leaves_the_global_settings_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    save_figure(new_figure(1, 1), tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before
    assert "dc:date" not in (tmp_path / "a.svg").read_text()
