import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Ellipse

from cohortgmm.errors import DataError
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.plots.patient import ellipse_axes, plot_patient, type_counts
from cohortgmm.plots.style import component_colors

K = 5


@pytest.fixture
def options(cohort20):
    """Arguments of plot_patient for three features, with correlated covariances."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(K, 3, 3))
    model = GaussianMixture(
        rng.dirichlet(np.full(K, 5.0)), rng.normal(0, 6, (K, 3)), factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(3)
    )
    x, components = model.sample(300, rng)
    umap = x[:, :2] * 2
    umap[::10] = np.nan
    return {
        "patient": "P0", "x": x, "components": components, "model": model, "scores": cohort20["scores"],
        "metric": "bic", "best_k": K, "feature_names": ["PC1", "PC2", "PC3"], "umap": umap,
        "cell_types": pd.Categorical(rng.choice(["T", "B", "NK"], 300)),
    }  # fmt: skip


def panel(figure, title):
    (found,) = [ax for ax in figure.axes if ax.get_title(loc="left").startswith(title)]
    return found


def cells(ax):
    (dots,) = [dots for dots in ax.collections if dots.get_gid() == "cells"]
    return {
        tuple(np.round(place, 9)): tuple(color[:3])
        for place, color in zip(dots.get_offsets(), dots.get_facecolors(), strict=True)
    }


def test_ellipses_are_the_eigenvectors_of_the_block(options):
    model = options["model"]
    ax = panel(plot_patient(**options), "components in PC1 and PC2")
    ellipses = {patch.get_gid(): patch for patch in ax.patches if isinstance(patch, Ellipse)}
    assert len(ellipses) == 2 * K
    for k in range(K):
        block = model.covariances[k, :2, :2]
        values = np.linalg.eigvalsh(block)
        for sigma in (1, 2):
            ellipse = ellipses[f"component-{k}-sigma-{sigma}"]
            np.testing.assert_allclose(ellipse.center, model.means[k, :2])
            np.testing.assert_allclose([ellipse.height, ellipse.width], 2 * sigma * np.sqrt(values))
            direction = np.array([np.cos(np.radians(ellipse.angle)), np.sin(np.radians(ellipse.angle))])
            np.testing.assert_allclose(block @ direction, values[1] * direction)


def test_points_of_the_ellipse_lie_at_mahalanobis_distance_one():
    covariance = np.array([[4.0, 1.5], [1.5, 1.0]])
    width, height, angle = ellipse_axes(covariance)
    points = Ellipse((0, 0), width, height, angle=angle).get_verts()[::2]  # between them: control points
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", points, np.linalg.inv(covariance), points), 1)


def test_a_component_has_one_colour_in_all_panels(options):
    figure = plot_patient(**options)
    features, umap = cells(panel(figure, "components in")), cells(panel(figure, "components on the UMAP"))
    colors = component_colors(np.arange(K))
    for place, embedded, component in zip(options["x"][:, :2], options["umap"], options["components"], strict=True):
        expected = tuple(colors[component][:3])
        assert features[tuple(np.round(place, 9))] == expected
        if np.isfinite(embedded).all():
            assert umap[tuple(np.round(embedded, 9))] == expected
    ellipses = [patch for patch in panel(figure, "components in").patches if isinstance(patch, Ellipse)]
    assert [to_rgba(ellipse.get_edgecolor()) for ellipse in ellipses[::2]] == [tuple(color) for color in colors]
    labels = panel(figure, "cell types of").get_yticklabels()
    assert [tuple(label.get_color()[:3]) for label in labels] == [tuple(color[:3] * 0.6) for color in colors]


def test_cells_without_a_place_on_the_umap_are_counted_not_drawn(options):
    ax = panel(plot_patient(**options), "components on the UMAP (30 of 300 cells not embedded)")
    assert len(cells(ax)) == 270


def test_labels_are_number_and_weight_of_components_in_view(options):
    ax = panel(plot_patient(**options), "components in PC1")
    weights = options["model"].weights
    assert {text.get_text() for text in ax.texts} == {f"{k}: {weights[k]:.1%}" for k in range(K)}


def test_bars_are_the_shares_of_the_cell_types(options):
    ax = panel(plot_patient(**options), "cell types of")
    table = pd.crosstab(options["components"], np.asarray(options["cell_types"]), normalize="index")
    bars = {round(bar.get_y() + bar.get_height() / 2): [] for bar in ax.patches}
    for bar in ax.patches:
        bars[round(bar.get_y() + bar.get_height() / 2)].append(bar.get_width())
    assert set(bars) == set(range(K))
    for k, widths in bars.items():
        np.testing.assert_allclose(sorted(widths), np.sort(table.loc[k]))


def test_rare_types_and_unnamed_cells_are_other():
    names = [f"type {i:02d}" for i in range(15) for _ in range(15 - i)] + [None] * 4
    counts = type_counts(np.zeros(len(names), int), pd.Categorical(names), 2)
    assert counts.columns.tolist() == [f"type {i:02d}" for i in range(12)] + ["other"]
    assert counts.loc[0, "other"] == 3 + 2 + 1 + 4
    assert counts.loc[1].tolist() == [0] * 13
    assert counts.to_numpy().sum() == len(names)


@pytest.mark.parametrize(("left_out", "n_panels"), [("umap", 5), ("cell_types", 5), (None, 6)])
def test_panels_that_have_no_data_are_left_out(options, left_out, n_panels, assert_legible):
    if left_out:
        options[left_out] = None
    figure = plot_patient(**options)
    assert len(figure.axes) == n_panels
    assert_legible(figure)


def test_title_names_patient_cells_k_and_criterion(options):
    scores = options["scores"].replace({"patient": {"P0": "a $b$"}})
    figure = plot_patient(**options | {"patient": "a $b$", "scores": scores})
    assert figure.get_suptitle() == r"a \$b\$: 300 cells, k = 5 by BIC"


def test_one_feature_is_a_histogram_of_area_one(options):
    model = GaussianMixture([0.3, 0.7], [[0.0], [9.0]], [[[1.0]], [[2.0]]])
    x, components = model.sample(500, 0)
    one = {"x": x, "components": components, "model": model, "feature_names": ["PC1"], "umap": None, "cell_types": None}
    ax = panel(plot_patient(**options | one), "components")
    assert sum(bar.get_width() * bar.get_height() for bar in ax.patches) == pytest.approx(1)
    grid, density = ax.lines[1].get_data()
    assert np.trapezoid(density, grid) == pytest.approx(0.7, abs=0.05)
    assert {text.get_text() for text in ax.texts} == {"0: 30.0%", "1: 70.0%"}


def test_patient_repeats_byte_for_byte(options, assert_repeatable):
    assert_repeatable(lambda: plot_patient(**options))


def test_a_patient_without_scores_is_named(options):
    with pytest.raises(DataError, match="no scores of patient 'P77'"):
        plot_patient(**options | {"patient": "P77"})


def test_cells_with_gaps_count_but_have_no_place(options, assert_legible):
    """With a background the weights on the page are shares of all cells, and sum to less than one."""
    model, x = options["model"], options["x"].copy()
    model = model.with_background(Background(np.full(3, -20.0), np.full(3, 20.0), 0.3))
    x[::3, 0] = x[1::3, 1] = np.nan
    figure = plot_patient(**options | {"x": x, "model": model})
    assert_legible(figure)
    assert figure.get_suptitle() == "P0: 300 cells, k = 5 by BIC"
    ax = panel(figure, "components in PC1 and PC2")
    (dots,) = [dots for dots in ax.collections if dots.get_gid() == "cells"]
    places = np.ma.masked_invalid(dots.get_offsets())
    assert (~np.ma.getmaskarray(places).any(axis=1)).sum() == 100
    assert {text.get_text() for text in ax.texts} == {f"{k}: {model.weights[k]:.1%}" for k in range(K)}
    assert len(cells(panel(figure, "components on the UMAP"))) == 270


def test_gaps_in_a_single_feature_are_left_out_of_the_histogram(options):
    model = GaussianMixture([0.3, 0.7], [[0.0], [9.0]], [[[1.0]], [[2.0]]])
    x, components = model.sample(500, 0)
    x[::4] = np.nan
    one = {"x": x, "components": components, "model": model, "feature_names": ["PC1"], "umap": None, "cell_types": None}
    ax = panel(plot_patient(**options | one), "components")
    assert sum(bar.get_width() * bar.get_height() for bar in ax.patches) == pytest.approx(1)
