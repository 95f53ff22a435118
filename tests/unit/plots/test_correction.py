"""Naive and corrected mixtures, the background, unobserved cells: every panel shows the numbers it was given."""

import itertools

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle, StepPatch

from cohortgmm.cohort.naive_comparison import Correction
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.result import MixtureFit
from cohortgmm.plots.correction import plot_correction
from cohortgmm.plots.style import ALARM, PLAIN, component_colors

LONG = "Hôpital Saint-Louis / cohort B, patient 12 (baseline, week 00) $x$"
COMPONENTS = "components at 1 sigma"
BACKGROUND = "probability of being background"
UNSEEN = "observed cells, and expected unobserved ones"
COMPLETED = "density of observed"


def mixture(d, k=3, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(k, d, d))
    return GaussianMixture(
        np.full(k, 1 / k), 5.0 * np.arange(k)[:, None] * np.ones(d), roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(d)
    )


def make(d=2, n=200, background=False, unseen=False, gaps=True, naive=True, selected=0, **numbers):
    """Arguments of plot_correction; with ``unseen``, a third of all cells is seen, those of a feature below its mean."""
    rng = np.random.default_rng(d)
    model = mixture(d)
    if background:
        model = model.with_background(Background(np.full(d, -4.0), np.full(d, 14.0), 0.2))
    x = model.sample(n, rng)[0]
    correction = {"naive": mixture(d, seed=1) if naive else None}
    if background:
        correction["background"] = rng.random(n) ** 3
    if unseen:
        draws = model.sample(9000, rng)[0]
        order = np.argsort(draws[:, selected], kind="stable")
        correction |= {"seen": draws[order[:3000]], "unseen": rng.permutation(draws[order[3000:]])}
        numbers = {"completeness": 1 / 3, "n_unobserved": 2.0 * n} | numbers
    if gaps and d > 1:
        x[::5, 0] = np.nan
        x[::7, 1] = np.nan
    fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(3, bool), **numbers)
    names = [f"PC{i + 1}" for i in range(d)]
    return {"patient": "P0", "x": x, "correction": Correction(fit, np.arange(n), **correction), "feature_names": names}


def panel(figure, title):
    (found,) = [ax for ax in figure.axes if ax.get_title(loc="left").startswith(title)]
    return found


def artist(ax, gid):
    (found,) = [thing for thing in (*ax.collections, *ax.patches) if thing.get_gid() == gid]
    return found


#: With one feature a cell without it is left out before.
EVERY = [
    *(
        (1, background, unseen, False, naive)
        for background, unseen, naive in itertools.product([False, True], repeat=3)
    ),
    *((2, *flags) for flags in itertools.product([False, True], repeat=4)),
    (3, True, True, True, True),
]


@pytest.mark.parametrize(("d", "background", "unseen", "gaps", "naive"), EVERY)
def test_every_combination_is_legible_and_complete(d, background, unseen, gaps, naive, assert_legible):
    figure = plot_correction(**make(d, background=background, unseen=unseen, gaps=gaps, naive=naive, n_empty=3))
    titles = ["density, corrected and naive" if d == 1 else "components at 1 sigma, corrected and naive"]
    titles += [BACKGROUND] if background else []
    titles += ([UNSEEN] if d > 1 else []) + [COMPLETED] if unseen else []
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.get_title(loc="left")]
    assert len(panels) == len(titles)
    assert all(ax.get_title(loc="left").startswith(title) for ax, title in zip(panels, titles, strict=True))
    assert_legible(figure)


@pytest.mark.parametrize("background", [False, True])
def test_long_names_fit_where_there_are_several_panels(background, assert_legible):
    options = make(2, background=background, unseen=True)
    options |= {"patient": LONG, "feature_names": [LONG, "$" * 40]}
    assert_legible(plot_correction(**options))


@pytest.mark.parametrize(("d", "unseen"), [(2, False), (1, True)], ids=["one panel", "one feature"])
def test_long_names_fit_in_narrow_figures(d, unseen, assert_legible):
    options = make(d, unseen=unseen, n_empty=12_345, **({"n_unobserved": 123_456.0} if unseen else {}))
    assert_legible(plot_correction(**options | {"patient": LONG}))


def test_the_title_tells_what_the_corrections_change():
    assert plot_correction(**make()).get_suptitle() == "P0: k = 3"
    options = make(background=True, unseen=True, n_empty=1234, completeness=0.25, n_unobserved=12_345.6)
    assert plot_correction(**options | {"patient": "a $b$"}).get_suptitle().replace("\n", " ") == (
        r"a \$b\$: k = 3, background 20.0%, 25.0% of all cells observed, 12,346 unobserved, "
        "1,234 cells without features left out"
    )


@pytest.mark.parametrize("d", [2, 3])
def test_ellipses_of_both_mixtures_are_at_one_sigma(d):
    options = make(d)
    ax = panel(plot_correction(**options), COMPONENTS)
    colors = component_colors(np.arange(3))
    for gid, model in (("corrected", options["correction"].fit.model), ("naive", options["correction"].naive)):
        ellipses = artist(ax, gid)
        assert isinstance(ellipses, EllipseCollection)
        np.testing.assert_allclose(ellipses.get_offsets(), model.means[:, :2])
        for k, covariance in enumerate(model.covariances[:, :2, :2]):
            angle = np.radians(ellipses.get_angles()[k])
            axis = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-axis[1], axis[0]])
            root = np.diag([ellipses.get_widths()[k] / 2, ellipses.get_heights()[k] / 2])
            turn = np.column_stack([axis, across])
            np.testing.assert_allclose(turn @ root**2 @ turn.T, covariance, atol=1e-9)
    np.testing.assert_allclose(artist(ax, "corrected").get_edgecolor(), colors)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["corrected", "naive"]
    alone = panel(plot_correction(**make(d, naive=False)), COMPONENTS)
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["corrected"]
    assert not [thing for thing in alone.collections if thing.get_gid() == "naive"]


def test_cells_that_lack_one_feature_are_ticks_at_the_edge():
    options = make()
    x = options["x"]
    ax = panel(plot_correction(**options), COMPONENTS)
    drawn = artist(ax, "cells").get_offsets()
    assert (~np.ma.getmaskarray(np.ma.masked_invalid(drawn)).any(axis=1)).sum() == (~np.isnan(x).any(axis=1)).sum()
    for feature, other in ((0, 1), (1, 0)):
        lone = x[np.isnan(x[:, other]) & ~np.isnan(x[:, feature]), feature]
        ticks = artist(ax, f"missing-{other}").get_offsets()
        assert len(lone) > 10
        np.testing.assert_allclose(ticks[:, feature], lone)
        np.testing.assert_allclose(ticks[:, other], 0.01)
    whole = panel(plot_correction(**make(gaps=False)), COMPONENTS)
    assert not [thing for thing in whole.collections if str(thing.get_gid()).startswith("missing")]


def test_limits_follow_the_cells_and_not_the_ellipses():
    options = make(gaps=False)
    wide = GaussianMixture([1.0], [[500.0, 0.0]], [[[1e6, 0.0], [0.0, 1e6]]])
    correction = options["correction"]
    far = Correction(correction.fit, correction.shown, wide)
    limits = [panel(plot_correction(**options | {"correction": c}), COMPONENTS).get_xlim() for c in (correction, far)]
    assert limits[0] == limits[1]


@pytest.mark.parametrize("d", [1, 2])
def test_cells_are_coloured_by_their_probability_of_being_background(d, assert_legible):
    options = make(d, background=True, gaps=False)
    correction = options["correction"]
    figure = plot_correction(**options)
    ax = panel(figure, BACKGROUND)
    total = correction.background.sum()
    assert ax.get_title(loc="left") == f"probability of being background ({total:.0f} of 200 cells)"
    dots = artist(ax, "background")
    order = np.argsort(correction.background)
    np.testing.assert_array_equal(dots.get_array(), correction.background[order])  # the likeliest on top
    y = options["x"][:, 1] if d == 2 else correction.background
    np.testing.assert_allclose(dots.get_offsets(), np.column_stack([options["x"][order, 0], y[order]]))
    assert dots.get_clim() == (0, 1)
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_gid() == "box"]
    if d == 1:
        assert not boxes
        assert ax.get_ylabel() == "probability"
    else:
        (box,) = boxes
        assert (box.get_xy(), box.get_width(), box.get_height()) == ((-4.0, -4.0), 18.0, 18.0)


def test_unseen_cells_are_as_many_as_are_expected():
    options = make(unseen=True)
    ax = panel(plot_correction(**options), UNSEEN)
    seen, unseen = ax.collections
    assert len(seen.get_offsets()) == 200
    drawn = unseen.get_offsets()
    assert len(drawn) == 400  # two for every cell
    np.testing.assert_allclose(drawn, options["correction"].unseen[:400])
    assert to_rgba(ALARM)[:3] == tuple(unseen.get_facecolor()[0, :3])
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["observed", "unobserved, drawn from the mixture"]


@pytest.mark.parametrize(("d", "selected"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_densities_are_of_the_feature_that_the_selection_changes_most(d, selected):
    """Their areas are the cells that were measured, and those that there are in all."""
    options = make(d, unseen=True, selected=selected, gaps=False)
    ax = panel(plot_correction(**options), COMPLETED)
    assert ax.get_xlabel() == f"PC{selected + 1}"
    assert ax.get_ylabel() == "cells per unit"
    steps = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
    areas = {}
    for step in steps:
        values, edges, _ = step.get_data()
        areas[to_rgba(step.get_edgecolor())] = (values * np.diff(edges)).sum()
    assert areas == {to_rgba(PLAIN): pytest.approx(200), to_rgba(ALARM): pytest.approx(600)}
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert sum(bar.get_width() * bar.get_height() for bar in bars) == pytest.approx(200)
    # What is seen of the mixture is what is below the cut.
    seen, everyone = (options["correction"].seen[:, selected], options["correction"].unseen[:, selected])
    assert seen.max() <= everyone.min()
    labels = {text.get_text() for text in ax.get_legend().get_texts()}
    assert labels == {"cells", "mixture, all", "mixture, observed"}


def test_one_feature_is_a_density_of_area_one():
    options = make(1, background=True, n=2000)
    ax = panel(plot_correction(**options), "density")
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert sum(bar.get_width() * bar.get_height() for bar in bars) == pytest.approx(1)
    lines = {line.get_label(): line.get_data() for line in ax.lines}
    grid, density = lines["corrected"]
    model = options["correction"].fit.model.without_background()  # the components alone
    np.testing.assert_allclose(density, np.exp(model.log_prob(grid[:, None])), rtol=1e-12)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=0.01)
    grid, density = lines["naive"]
    np.testing.assert_allclose(density, np.exp(options["correction"].naive.log_prob(grid[:, None])), rtol=1e-12)
    alone = panel(plot_correction(**make(1, naive=False)), "density")
    assert [line.get_label() for line in alone.lines] == ["corrected"]


def test_only_the_cells_shown_are_drawn():
    options = make(background=True, gaps=False)
    whole = options["correction"]
    shown = np.arange(0, 200, 4)
    few = Correction(whole.fit, shown, whole.naive, whole.background[shown])
    figure = plot_correction(**options | {"correction": few})
    np.testing.assert_allclose(artist(panel(figure, COMPONENTS), "cells").get_offsets(), options["x"][shown])
    assert len(artist(panel(figure, BACKGROUND), "background").get_offsets()) == 50


@pytest.mark.parametrize("others", [False, True], ids=["one panel", "all panels"])
@pytest.mark.parametrize("kind", ["first missing", "never both", "no features", "one cell", "all alike"])
def test_cells_of_which_little_is_there(kind, others, assert_legible):
    options = make(background=others, unseen=others, naive=False)
    x = options["x"]
    x[:] = np.nan_to_num(x)
    if kind == "first missing":
        x[:, 0] = np.nan
    elif kind == "never both":
        x[::2, 0] = x[1::2, 1] = np.nan
    elif kind == "no features":
        x[:] = np.nan
    elif kind == "all alike":
        x[:] = 1.0
    correction = options["correction"]
    shown = np.arange(1) if kind == "one cell" else correction.shown
    chance = None if correction.background is None else correction.background[shown]
    correction = Correction(correction.fit, shown, None, chance, correction.seen, correction.unseen)
    assert_legible(plot_correction(**options | {"correction": correction}))


@pytest.mark.parametrize("d", [1, 2])
def test_nothing_unseen(d, assert_legible):
    options = make(d, unseen=True, completeness=1.0, n_unobserved=0.0)
    whole = options["correction"]
    everyone = np.concatenate([whole.seen, whole.unseen])
    correction = Correction(whole.fit, whole.shown, whole.naive, None, everyone, np.empty((0, d)))
    figure = plot_correction(**options | {"correction": correction})
    assert_legible(figure)
    assert figure.get_suptitle() == "P0: k = 3, 100.0% of all cells observed, 0 unobserved"
    steps = [patch.get_data().values for patch in panel(figure, COMPLETED).patches if isinstance(patch, StepPatch)]
    np.testing.assert_array_equal(steps[0], steps[1])


@pytest.mark.parametrize(("d", "others"), [(1, False), (2, True)], ids=["one panel", "all panels"])
def test_corrections_repeat_byte_for_byte(d, others, assert_repeatable):
    options = make(d, background=others, unseen=others)
    assert_repeatable(lambda: plot_correction(**options))


def test_the_cells_are_left_as_they_are():
    options = make(background=True, unseen=True)
    before = {name: np.copy(getattr(options["correction"], name)) for name in ("background", "seen", "unseen", "shown")}
    x = options["x"].copy()
    plot_correction(**options)
    np.testing.assert_array_equal(options["x"], x)
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(options["correction"], name), values)


def reaching(*means):
    """The figure of cells between 0 and 10, with corrected components at these places of the first feature, variance 4."""
    x = np.random.default_rng(0).uniform(0.0, 10.0, size=(300, 2))
    k = len(means)
    model = GaussianMixture(np.full(k, 1 / k), np.column_stack([means, np.full(k, 5.0)]), [4.0 * np.eye(2)] * k)
    fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(k, bool))
    correction = Correction(fit, np.arange(300), None)
    return plot_correction(patient="P0", x=x, correction=correction, feature_names=["PC1", "PC2"])


def test_the_limits_hold_ellipses_that_reach_past_a_gate_but_no_far_ones():
    within = panel(reaching(5.0), COMPONENTS).get_xlim()
    assert -1 < within[0] < 0.1
    past = panel(reaching(5.0, -1.0), COMPONENTS).get_xlim()
    assert -4 < past[0] < -3
    assert past[1] == within[1]
    far = panel(reaching(5.0, -1.0, 40.0), COMPONENTS)
    assert far.get_xlim() == past
    assert far.get_ylim() == panel(reaching(5.0), COMPONENTS).get_ylim()


def test_legends_cover_no_cells():
    figure = plot_correction(**make(background=True, unseen=True))
    renderer = figure.canvas.get_renderer()
    for title in (COMPONENTS, UNSEEN):
        ax = panel(figure, title)
        box, axes = ax.get_legend().get_window_extent(renderer), ax.get_window_extent(renderer)
        assert box.y1 < ax.xaxis.label.get_window_extent(renderer).y0
        assert box.y0 >= 0
        assert axes.y0 > box.y1
