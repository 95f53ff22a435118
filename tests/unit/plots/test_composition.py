import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh

from cohortgmm.plots.composition import component_shares, grouped_order, keep_apart, plot_composition


def heat(figure):
    return max((ax for ax in figure.axes if ax.findobj(QuadMesh)), key=lambda ax: ax.get_position().height)


def test_shares_sum_to_one_with_frequent_types_first():
    table = pd.DataFrame(
        [("a", 0, "T", 3), ("a", 0, "B", 1), ("a", 1, "B", 8), ("b", 0, "T", 2), ("b", 1, "T", 0)],
        columns=["patient", "component", "cell_type", "n_cells"],
    )
    shares, sizes = component_shares(table)
    assert shares.columns.tolist() == ["B", "T"]
    assert shares.loc[("a", 0)].tolist() == [0.25, 0.75]
    assert sizes.to_dict() == {("a", 0): 4, ("a", 1): 8, ("b", 0): 2}
    assert grouped_order(shares).tolist() == [("a", 1), ("b", 0), ("a", 0)]


def test_beyond_40_types_the_rarest_are_summed_up():
    table = pd.DataFrame(
        {"patient": "a", "component": 0, "cell_type": [f"t{i}" for i in range(60)], "n_cells": range(1, 61)}
    )
    shares, sizes = component_shares(table)
    assert shares.shape == (1, 40)
    assert shares["other types"].iloc[0] == pytest.approx(sum(range(1, 22)) / sizes.iloc[0])


def test_rows_of_the_heat_map_are_grouped_by_dominant_type(cohort):
    values = heat(plot_composition(cohort["composition"])).collections[0].get_array()
    assert len(values) == len(cohort["weights"])
    np.testing.assert_allclose(values.sum(axis=1), 1)
    dominant, purity = values.argmax(axis=1), values.max(axis=1)
    assert (np.diff(dominant) >= 0).all()
    assert (np.diff(purity)[np.diff(dominant) == 0] <= 0).all()


def test_groups_are_named_with_their_number_of_components(cohort20):
    ax = heat(plot_composition(cohort20["composition"]))
    counts = [int(text.get_text().rsplit("(", 1)[1].rstrip(")")) for text in ax.texts]
    assert sum(counts) == len(cohort20["weights"])
    dominant = ax.collections[0].get_array().argmax(axis=1)
    assert counts == np.unique(dominant, return_counts=True)[1].tolist()


def test_every_patient_has_a_line_most_mixed_first(cohort20):
    figure = plot_composition(cohort20["composition"])
    (ax,) = [ax for ax in figure.axes if ax.get_xlabel() == "purity of the components"]
    table = cohort20["composition"]
    best = table.groupby(["patient", "component"])["n_cells"].max().groupby("patient").sum()
    expected = (best / table.groupby("patient")["n_cells"].sum()).sort_values()
    means = [segment[0][0] for segment in ax.collections[1].get_segments()]
    np.testing.assert_allclose(means, expected)
    assert len(ax.get_yticklabels()) == 20
    assert len(ax.collections[0].get_offsets()) == len(cohort20["weights"])


def test_one_mixture_for_all_names_its_components(cohort20):
    table = cohort20["composition"].assign(patient="all patients")
    figure = plot_composition(table)
    assert not [ax for ax in figure.axes if ax.get_xlabel() == "purity of the components"]
    sizes = table.groupby("component")["n_cells"].sum()
    assert {text.get_text() for text in heat(figure).texts} == {f"{k}  ({n:,} cells)" for k, n in sizes.items()}


def test_histogram_counts_every_component(cohort20):
    (ax,) = [
        ax for ax in plot_composition(cohort20["composition"]).axes if ax.get_title(loc="left").startswith("purity")
    ]
    assert sum(bar.get_height() for bar in ax.patches) == len(cohort20["weights"])


def test_composition_is_legible(cohort, assert_legible):
    assert_legible(plot_composition(cohort["composition"]))


def test_composition_repeats_byte_for_byte(cohort20, assert_repeatable):
    assert_repeatable(lambda: plot_composition(cohort20["composition"]))


@pytest.mark.parametrize("positions", [[1, 1.1, 1.2, 9], [9.8, 9.9, 10], [5]])
def test_keep_apart(positions):
    moved = keep_apart(np.array(positions), 1, 0, 10)
    assert (np.diff(moved) >= 1 - 1e-12).all()
    assert moved[0] >= 0.5
    assert moved[-1] <= 9.5
    assert keep_apart(np.array([2.0, 4.0]), 1, 0, 10).tolist() == [2, 4]
