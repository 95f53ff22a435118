"""Figures take every text as it is and no setting but their own."""

import itertools
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from cycler import cycler
from hostile import IDS, TEXTS
from matplotlib.text import Text

import cohortgmm
from cohortgmm.cohort.naive_comparison import Correction
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.background import Background
from cohortgmm.mixture.result import MixtureFit
from cohortgmm.plots.composition import plot_composition
from cohortgmm.plots.correction import plot_correction
from cohortgmm.plots.criteria import plot_cohort_criteria, plot_criteria
from cohortgmm.plots.overview import plot_overview
from cohortgmm.plots.patient import plot_patient
from cohortgmm.plots.style import save_figure, short_label, short_labels

SETTINGS = {
    "text.usetex": True, "font.size": 31, "font.family": "serif", "axes.formatter.limits": (0, 0),
    "axes.formatter.use_mathtext": True, "axes.formatter.useoffset": False, "axes.formatter.use_locale": True,
    "savefig.bbox": "tight", "savefig.dpi": 11, "savefig.transparent": True, "savefig.facecolor": "red",
    "svg.fonttype": "none", "svg.hashsalt": "theirs", "svg.image_inline": False, "svg.id": "theirs",
    "axes.prop_cycle": cycler(color=["pink"]), "axes.facecolor": "black", "axes.grid": True, "axes.labelpad": 30,
    "axes.titley": 0.5, "axes.xmargin": 0.4, "axes.autolimit_mode": "round_numbers", "axes.unicode_minus": False,
    "figure.autolayout": True, "figure.constrained_layout.use": True, "figure.constrained_layout.h_pad": 1.0,
    "figure.dpi": 30, "figure.facecolor": "green", "figure.subplot.left": 0.4, "figure.titlesize": 40,
    "legend.frameon": True, "legend.labelcolor": "red", "legend.loc": "center", "lines.linewidth": 9, "lines.marker": "x",
    "patch.force_edgecolor": True, "hatch.color": "red", "hatch.linewidth": 5, "image.cmap": "jet", "image.lut": 4,
    "path.simplify": False, "path.sketch": (1, 100, 2), "path.snap": False, "agg.path.chunksize": 20,
    "text.color": "red", "text.antialiased": False, "text.hinting": "none", "text.parse_math": False,
    "mathtext.fontset": "cm", "mathtext.default": "bf", "xtick.top": True, "xtick.minor.visible": True,
    "ytick.direction": "inout", "ytick.labelsize": 40, "xtick.alignment": "right", "hist.bins": 3,
    "scatter.edgecolors": "red", "scatter.marker": "s", "pcolor.shading": "nearest", "pcolormesh.snap": False,
    "errorbar.capsize": 9, "date.autoformatter.year": "x", "timezone": "Asia/Tokyo", "interactive": True,
}  # fmt: skip


def draw_all(patients=("P1", "other"), cell_types=("T", "B"), features=("PC1", "PC2"), metric="bic"):
    """All figures of a small cohort where texts stand at every place that a user names; the pages are of the first."""
    rng = np.random.default_rng(0)
    patients, cell_types = list(patients), list(cell_types)
    ks, n = (1, 2, 3), len(patients)
    model = GaussianMixture([0.4, 0.6], [[0.0, 0.0], [5.0, 5.0]], [np.eye(2), 2 * np.eye(2)])
    model = model.with_background(Background([-9, -9], [14, 14], 0.1))
    x, components = model.sample(80, rng)
    scores = pd.DataFrame(
        {"patient": p, "k": k, "aic": 100.0 + k, "bic": 90.0 + k, "heldout_nll": 3.0 + k, "n_floored": k > 2,
         "converged": k > 1, "status": "ok"}
        for p in patients for k in ks
    )  # fmt: skip
    at_edge = np.arange(n) % 2 == 1
    selection = pd.DataFrame({"patient": patients, "k": 2, "metric": metric, "at_edge": at_edge})
    diagnostics = pd.DataFrame(
        {"patient": patients, "n_cells": 80, "k": 2, "n_iter": 5, "converged": ~at_edge, "train_nll": 1.0,
         "heldout_nll": 1.2 + 200.0 * at_edge, "nll_gap": 0.2, "max_condition": np.geomspace(10, 1e9, n),
         "n_floored": at_edge.astype(int)}
    )  # fmt: skip
    weights = pd.DataFrame(
        [(p, c, 0.3 + c) for p in patients for c in (0, 1)], columns=["patient", "component", "weight"]
    )
    composition = pd.DataFrame(
        [(p, c, t, 20 + 7 * c + i) for p in patients for c in (0, 1) for i, t in enumerate(cell_types)],
        columns=["patient", "component", "cell_type", "n_cells"],
    )
    fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(2, bool), completeness=0.5, n_unobserved=80.0)
    correction = Correction(fit, np.arange(80), model, rng.random(80), x[:40], x[40:])
    first = patients[0]
    page = {
        "patient": first, "x": x, "components": components, "model": model, "scores": scores, "metric": metric,
        "best_k": 2, "umap": x, "cell_types": pd.Categorical(rng.choice(cell_types, 80), categories=cell_types),
        "feature_names": list(features),
    }  # fmt: skip
    one = GaussianMixture([0.4, 0.6], [[0.0], [5.0]], [[[1.0]], [[2.0]]])
    return {
        "composition": plot_composition(composition),
        "composition of one": plot_composition(composition[composition["patient"] == first]),
        "correction": plot_correction(patient=first, x=x, correction=correction, feature_names=list(features)),
        "criteria": plot_criteria(scores, patient=first, metric=metric, best_k=2),
        "cohort criteria": plot_cohort_criteria(scores, selection, metric=metric),
        "overview": plot_overview(diagnostics, weights),
        "patient": plot_patient(**page),
        "one feature": plot_patient(**page | {"x": x[:, :1], "model": one, "feature_names": features[:1]}),
    }


def write_all(folder, figures):
    folder.mkdir(exist_ok=True)
    for (name, figure), suffix in itertools.product(figures.items(), ("svg", "png")):
        save_figure(figure, folder / f"{name}.{suffix}")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("plain"), draw_all())


def assert_same(found, expected):
    assert len(expected) == 16
    assert [name for name in expected if found[name] != expected[name]] == []


def test_no_setting_of_a_notebook_changes_a_byte(plain, tmp_path):
    with matplotlib.rc_context(SETTINGS):
        assert_same(write_all(tmp_path / "hostile", draw_all()), plain)
        assert matplotlib.rcParams["text.usetex"]


@pytest.mark.parametrize("style", ["classic", "dark_background"])
def test_no_style_sheet_changes_a_byte(style, plain, tmp_path):
    with matplotlib.style.context(style):
        assert_same(write_all(tmp_path / "styled", draw_all()), plain)


#: Drawn in a process of its own: some settings count when matplotlib is loaded.
PROGRAM = "import sys, pathlib, test_hostile as t; t.write_all(pathlib.Path(sys.argv[1]), t.draw_all())"


def test_no_matplotlibrc_changes_a_byte(plain, tmp_path):
    cycle = "cycler('color', ['pink'])"
    lines = [f"{key}: {value}" for key, value in SETTINGS.items() if isinstance(value, (str, int, float))]
    (tmp_path / "matplotlibrc").write_text("\n".join([*lines, f"axes.prop_cycle: {cycle}", "no: key", "nonsense"]))
    folders = [Path(__file__).parent, Path(__file__).parents[2], Path(cohortgmm.__file__).parents[1]]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, folders)), "MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "ps"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "drawn")]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}
    assert_same(found, plain)


def is_formula(text):
    return text._preprocess_math(text.get_text())[1]


def check(figures, folder):
    for name, figure in figures.items():
        # Only numbers on a log axis are formulas.
        formulas = [text.get_text() for text in figure.findobj(Text) if is_formula(text)]
        assert [text for text in formulas if not text.startswith(r"$\mathdefault{")] == [], name
        save_figure(figure, folder / f"{name}.svg")
        ElementTree.parse(folder / f"{name}.svg")  # well-formed: a browser shows it


@pytest.mark.parametrize("start", range(0, len(TEXTS), 10))
def test_every_text_is_drawn_as_it_is(start, tmp_path):
    texts = np.roll(np.array(TEXTS, dtype=object), -start).tolist()
    types = [text for text in texts if text][:14]
    figures = draw_all(patients=texts[:20], cell_types=types, features=texts[1:3], metric=texts[3] or "bic")
    check(figures, tmp_path)
    shown = {text.get_text() for ax in figures["composition"].axes for text in ax.get_xticklabels()}
    assert set(short_labels(types)) <= shown


@pytest.mark.parametrize("text", IDS, ids=ascii)
def test_ids_stand_in_the_title(text):
    scores = pd.DataFrame({"patient": text, "k": [1, 2], "aic": 1.0, "bic": 1.0, "heldout_nll": 1.0})
    figure = plot_criteria(scores.assign(n_floored=0, converged=True), patient=text, metric="bic", best_k=2)
    shown = figure.get_suptitle().replace(r"\$", "$")
    assert not is_formula(figure._suptitle)
    assert shown.endswith(": k = 2 by BIC")
    words = " ".join(text.split())
    if words.isascii() and words.isprintable():
        assert shown == f"{words}: k = 2 by BIC"


def test_a_cell_type_with_an_underscore_is_in_the_legend():
    figure = draw_all(cell_types=["_B", "__"])["patient"]
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    assert {"_B", "__"} <= {text.get_text() for legend in legends for text in legend.get_texts()}


def test_what_the_font_lacks_is_told_apart():
    labels = short_labels(["P 🧬", "P 🧪", "P \x07", "P \x08", "張三", "李四"])
    assert len(set(labels)) == 6
    assert short_label("\x07🧬") == r"\x07\U0001f9ec"
    assert all(label.isascii() for label in labels)


@pytest.mark.parametrize("n", [1, 2, 28, 29, 30, 31, 32, 55, 59, 60, 61, 200])
def test_names_that_are_cut_keep_their_dollars_literal(n):
    x = np.random.default_rng(0).normal(size=(20, 2))
    model = GaussianMixture([1.0], [[0.0, 0.0]], [np.eye(2)])
    fit = MixtureFit(model, 0.0, 1, True, np.zeros(2), np.zeros(1, bool))
    for patient in ("$" * n, "x" * n + "$x$"):
        figure = plot_correction(
            patient=patient, x=x, correction=Correction(fit, np.arange(20), None), feature_names="ab"
        )
        assert not is_formula(figure._suptitle)
