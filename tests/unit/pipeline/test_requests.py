"""Memory and time that jobs ask for."""

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohortgmm.cohort.cells import PatientCells
from cohortgmm.config import read_config
from cohortgmm.pipeline import requests

ONE = SimpleNamespace(k="1")
RULES = Path(requests.__file__).parents[3] / "workflow" / "rules"


class Files(list):
    """Snakemake's input: a list with names."""

    @property
    def cells(self):
        return self[0]


def gmm(**options):
    return read_config({"input": "x", "patient_col": "p", "gmm": options}).gmm


def cells_file(folder, n, d, dtype=np.float32):
    path = folder / f"{n}x{d}.npz"
    x = np.zeros((n, d), dtype=dtype)
    PatientCells("P", x, np.ones(n, dtype=bool), feature_names=tuple("f" * d)).save(path)
    return path


def minutes(path, k=2, attempt=1, n_threads=1, rule="fit", **options):
    wildcards = SimpleNamespace() if k is None else SimpleNamespace(k=str(k))
    options = {"train_size": 1.0} | options
    return requests.fit_minutes(rule, gmm(**options))(wildcards, Files([str(path)]), n_threads, attempt)


def test_requests_grow_with_the_input_and_the_attempt(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(bytes(4_000_000))
    request = requests.REQUESTS["split"]
    memory, time = requests.memory("split"), requests.minutes("preprocess")
    base = requests.SNAKEMAKE_MB + request.memory
    assert memory(None, [str(file)], 1) == int(base + 4 * request.memory_per_mb)
    assert memory(None, [str(file), str(file)], 1) == int(base + 8 * request.memory_per_mb)
    assert memory(None, [str(file)], 3) == int(4 * (base + 4 * request.memory_per_mb))
    assert memory(None, [str(tmp_path / "not made yet")], 1) == base
    slow = requests.REQUESTS["preprocess"]
    assert time(None, [str(file)] * 100, 2) == int(2 * (slow.minutes + 400 * slow.minutes_per_mb))


def test_the_memory_for_anndata_follows_what_is_read_of_it(tmp_path):
    file = tmp_path / "x.h5ad"
    x, embedding = np.zeros((1000, 500), dtype=np.float32), np.zeros((1000, 100), dtype=np.float32)
    ad.AnnData(x, obsm={"X_pca": embedding}).write_h5ad(file, compression="gzip")
    request = requests.REQUESTS["split"]
    base = requests.SNAKEMAKE_MB + request.memory
    for parts, read in ((("obsm",), embedding.nbytes), (("X", "obsm"), x.nbytes + embedding.nbytes)):
        asked = requests.memory("split", parts)(None, [str(file)], 1)
        assert asked == int(base + request.memory_per_mb * read / 1e6)


def test_every_rule_has_a_request():
    named = {name for path in RULES.glob("*.smk") for name in re.findall(r'requests\.\w+\("(\w+)"', path.read_text())}
    assert named == set(requests.REQUESTS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_are_those_that_numpy_reads(tmp_path, dtype):
    path = cells_file(tmp_path, 37, 5, dtype)
    with np.load(path) as stored:
        assert requests.cells_shape(path) == stored["x"].shape
    np.savez(path, x=np.asfortranarray(np.zeros((7, 3))))
    assert requests.cells_shape(path) == (7, 3)


def test_other_files_have_no_shape(tmp_path):
    path = tmp_path / "x.npz"
    for content in (b"", b"no archive", bytes(1000)):
        path.write_bytes(content)
        assert requests.cells_shape(path) == (0, 0)
    np.savez(path, y=np.zeros((3, 3)))
    assert requests.cells_shape(path) == (0, 0)
    np.savez(path, x=np.zeros(3))
    assert requests.cells_shape(path) == (0, 0)


def test_the_time_of_a_fit_grows_with_its_work(tmp_path):
    """Linearly in cells, k and starts, quadratically in features."""
    asked = {
        name: minutes(cells_file(tmp_path, n, d), **options)
        for name, n, d, options in (
            ("one", 200_000, 40, {"k": 20, "n_init": 400}),
            ("cells", 400_000, 40, {"k": 20, "n_init": 400}),
            ("k", 200_000, 40, {"k": 40, "n_init": 400}),
            ("starts", 200_000, 40, {"k": 20, "n_init": 800}),
            ("features", 200_000, 80, {"k": 20, "n_init": 400}),
            ("diagonal", 200_000, 40, {"k": 20, "n_init": 400, "covariance_type": "diag"}),
            ("threads", 200_000, 40, {"k": 20, "n_init": 400, "n_threads": 2}),
        )
    }
    assert asked["one"] > 100
    for name, factor in {"cells": 2, "k": 2, "starts": 2, "features": 4, "diagonal": 0.2, "threads": 0.5**0.5}.items():
        assert asked[name] == pytest.approx(factor * asked["one"], abs=factor + 1), name  # whole minutes


def test_the_time_of_cells_with_gaps_of_their_own_grows_with_the_cubed_features(tmp_path):
    times = [minutes(archive(tmp_path / f"{d}.npz", header((10**8, d))), missing=True) for d in (10, 20)]
    assert times[1] == pytest.approx(8 * times[0], rel=1e-3)


def test_diagonals_take_less_unless_the_noise_has_correlations(tmp_path):
    n, d, everyone = 20_000, 10, np.ones(20_000, dtype=bool)
    asked = {}
    for name, noise in (("variances", np.ones((n, d))), ("covariances", np.tile(np.eye(d), (n, 1, 1)))):
        path = tmp_path / f"{name}.npz"
        PatientCells("P", np.zeros((n, d)), everyone, noise=noise).save(path)
        for kind in ("full", "diag"):
            asked[name, kind] = minutes(path, 200, covariance_type=kind, noise={"obsm": "v"})
    assert asked["covariances", "diag"] == asked["covariances", "full"] == asked["variances", "full"]
    assert asked["variances", "diag"] < asked["variances", "full"] / 2


def test_unseen_cells_take_time_too(tmp_path):
    path = archive(tmp_path / "x.npz", header((20_000, 20)))
    options = {"k": 20_000, "n_init": 1}
    plain = minutes(path, **options, background={"lower": -1, "upper": 1})
    seen = (13 * 20_000 + 12 * 5 * 131_072) / (13 * 20_000)  # one start, and a run as long as twelve
    gated = minutes(path, **options, completeness={"gates": [{"inside": {"PC 1": [0, None]}}]})
    assert gated == pytest.approx(seen * plain, rel=0.02)


@pytest.mark.parametrize(("n", "k", "threads"), [(10**4, 5, 1), (10**6, 1, 2), (10**6, 2, 3), (10**7, 50, 8)])
def test_threads_have_a_minute_of_work_each(tmp_path, n, k, threads):
    path = Files([str(archive(tmp_path / "x.npz", header((n, 10))))])
    asked = requests.fit_threads("fit", gmm(missing=True, train_size=0.1), 8)(SimpleNamespace(k=str(k)), path)
    assert asked == threads
    assert type(asked) is int


def test_a_fit_that_is_only_foreseen_has_one_thread(tmp_path):
    assert requests.fit_threads("fit", gmm(), 8)(SimpleNamespace(k="5"), Files([str(tmp_path / "not there")])) == 1


def test_cells_that_are_not_fitted_take_no_time(tmp_path):
    path = archive(tmp_path / "x.npz", header((10**9, 40)))
    fit, refit = (minutes(path, 5, rule=rule, refit="full") for rule in ("fit", "refit"))
    assert fit == refit
    assert minutes(path, 5, train_size=0.25) == pytest.approx(fit / 4, abs=1)
    assert minutes(path, 5, rule="refit", train_size=0.25, refit="full") == fit
    assert minutes(path, 5, rule="refit", train_size=0.25, refit="none") == requests.REQUESTS["refit"].minutes


@pytest.mark.parametrize(("n", "nodes"), [(100, 6400), (20_000, 131_072)])
def test_unseen_cells_take_memory(tmp_path, n, nodes):
    path = archive(tmp_path / "x.npz", header((n, 50)))
    files = Files([str(path)])
    gated = gmm(completeness={"gates": [{"inside": {"PC1": [0, None]}}]})
    plain = requests.memory("fit")(None, files, 1)
    assert requests.fit_memory("fit", gmm())(ONE, files, 1) == plain
    assert requests.fit_memory("fit", gated)(ONE, files, 1) == plain + int(120 + nodes * 50 * 64 / 1e6)
    assert requests.fit_memory("fit", gated)(ONE, files, 2) == pytest.approx(2 * (plain + 120 + nodes * 3.2e-3), abs=2)
    assert requests.fit_memory("fit", gated)(ONE, Files([str(tmp_path / "not yet")]), 1) == 270 + 140 + 120


def test_covariances_of_every_cell_take_memory(tmp_path):
    files = Files([str(archive(tmp_path / "x.npz", header((2000, 50))))])
    plain = requests.memory("fit")(None, files, 1)
    for options in ({"missing": True}, {"noise": {"obsm": "v"}}, {"missing": True, "noise": {"obsm": "v"}}):
        assert requests.fit_memory("fit", gmm(**options))(ONE, files, 1) == plain + 130


def test_a_fit_from_a_reference_has_no_trial_starts(tmp_path):
    path = archive(tmp_path / "x.npz", header((10**8, 10)))
    times = [minutes(path, 5, missing=True, **more) for more in ({}, {"reference": "model.npz"})]
    assert times[0] / times[1] == pytest.approx((10 + 12) / 12, rel=1e-3)


def test_the_time_of_a_fit_doubles_with_every_attempt(tmp_path):
    path = cells_file(tmp_path, 100, 3)
    assert [minutes(path, attempt=attempt) for attempt in (1, 2, 3)] == [10, 20, 40]


def test_a_refit_may_be_of_the_largest_candidate(tmp_path):
    path = cells_file(tmp_path, 200_000, 40)
    options = {"k_comps": [2, 40], "n_init": 400, "refit": "full"}
    assert minutes(path, None, rule="refit", **options) == minutes(path, 40, **options) > minutes(path, 2, **options)


def test_corrected_fits_ask_for_more(tmp_path):
    path = cells_file(tmp_path, 400_000, 10)
    assert minutes(path, 5, noise={"obsm": "v"}) == 26 > minutes(path, 5)
    assert minutes(path, 5, missing=True) == minutes(path, 5, noise={"obsm": "v"})


def test_a_fit_that_is_only_foreseen_asks_for_the_least(tmp_path):
    assert minutes(tmp_path / "not there.npz") == requests.REQUESTS["fit"].minutes


def test_whole_numbers_are_asked_for(tmp_path):
    """Snakemake hands them to SLURM as they are."""
    file = tmp_path / "x"
    file.write_bytes(bytes(1_234_567))
    for rule, request in requests.REQUESTS.items():
        for amount, base in (
            (requests.memory(rule), requests.SNAKEMAKE_MB + request.memory),
            (requests.minutes(rule), request.minutes),
        ):
            asked = [amount(None, [str(file)] * 10, attempt) for attempt in (1, 2, 3)]
            assert set(map(type, asked)) == {int}
            assert base <= asked[0] == pytest.approx(asked[1] / 2, abs=1) == pytest.approx(asked[2] / 4, abs=1)
            assert amount(None, [], 1) == int(base)


def test_a_folder_among_the_input_has_no_size(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(bytes(9_000_000))
    assert requests.memory("merge")(None, [str(tmp_path / "folder")] * 1000, 1) == requests.memory("merge")(None, [], 1)


def rule_blocks():
    """Name and text of every rule of the workflow; one that names itself in a loop has no name."""
    for path in sorted(RULES.glob("*.smk")):
        parts = re.split(r"^ *(?:rule|checkpoint)(?: (\w+))?:\n", path.read_text(), flags=re.MULTILINE)
        yield from zip(parts[1::2], parts[2::2], strict=True)


def test_every_rule_asks_for_memory_and_time_under_its_own_name():
    blocks = list(rule_blocks())
    assert len(blocks) == len(requests.REQUESTS)
    for name, text in blocks:
        own = name or "qc_cohort"
        prefix = "fit_" if own in ("fit", "refit") else ""
        special = f"{own}_" if own in ("merge", "split") else prefix
        for resource, function in (("mem_mb", f"{special}memory"), ("runtime", f"{prefix}minutes")):
            asked = re.findall(rf'{resource}=requests\.(\w+)\("(\w+)"', text)
            assert asked == [(function, own)]


# Shapes from the headers of array files


def archive(path, header, name="x.npy"):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, header)
    return path


def header(shape, version=(1, 0), dtype="<f4"):
    """The beginning of an array file, without the numbers."""
    file = io.BytesIO()
    write = {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version]
    write(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f8", "<f2", "<i4", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(37, 5), (1, 1), (0, 3), (4, 0), (100_000, 2)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_shapes_of_any_array(tmp_path, dtype, order, shape, save):
    path = tmp_path / "x.npz"
    save(path, first=np.zeros(3), x=np.zeros(shape, dtype=dtype, order=order), y=np.zeros((9, 9)))
    with np.load(path) as stored:
        assert requests.cells_shape(path) == stored["x"].shape == shape
    assert requests.cells_shape(str(path)) == shape


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_only_the_header_is_read(tmp_path, version):
    shape = (10**9, 50)
    assert requests.cells_shape(archive(tmp_path / "x.npz", header(shape, version))) == shape


def test_cells_with_noise_have_the_shape_of_the_cells(tmp_path):
    x, everyone = np.zeros((6, 3)), np.ones(6, dtype=bool)
    PatientCells("P", x, everyone, noise=np.ones((6, 3, 3))).save(tmp_path / "x.npz")
    assert requests.cells_shape(tmp_path / "x.npz") == (6, 3)


def test_a_file_that_has_changed_has_another_shape(tmp_path):
    path = archive(tmp_path / "x.npz", header((12, 34)))
    assert requests.cells_shape(path) == (12, 34)
    archive(path, header((34, 12)))  # as long as before
    os.utime(path, ns=(1, 1))
    assert requests.cells_shape(path) == (34, 12)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        header((3, 2))[:9],
        header((3, 2))[:40],
        header((3, 2, 1)),
        header(()),
        header((3, 2)).replace(b"shape", b"shave"),
        header((3, 2)).replace(b"(3, 2)", b"(3, 2("),
        header((3, 2)).replace(b"(3, 2)", b"(3,\0)"),
        header((3, 2)).replace(b"(3, 2)", b"f(3,2)"),
    ],
)
def test_a_header_that_cannot_be_read_has_no_shape(tmp_path, content):
    assert requests.cells_shape(archive(tmp_path / "x.npz", content)) == (0, 0)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_has_a_shape_or_none_but_stops_nobody(tmp_path, save):
    """Any bit may flip; only the file's own job shall fail of it, not the run."""
    path = tmp_path / "x.npz"
    save(path, x=np.zeros((3, 2), dtype=np.float32))
    whole, failed = path.read_bytes(), set()
    damaged = [whole[:n] for n in range(len(whole))]
    for i in range(len(whole)):
        damaged += [whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :] for bit in range(8)]
    for i, content in enumerate(damaged):
        path.write_bytes(content)
        os.utime(path, ns=(i, i))
        try:
            assert len(requests.cells_shape(path)) == 2
        except Exception as error:
            failed.add(type(error).__name__)
    assert failed == set()


def test_the_start_of_a_run_does_not_pay_for_numpy():
    modules = [path.stem for path in Path(requests.__file__).parent.glob("*.py")]
    modules = sorted({*modules} - {"__init__", "settings", "control"})  # the checked configuration needs pydantic
    code = f"import sys; sys.path.insert(0, {str(RULES.parents[1] / 'src')!r})\n"
    code += "".join(f"import cohortgmm.pipeline.{name}\n" for name in modules) + "print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "cohortgmm.pipeline.requests" in loaded
    assert not set(loaded) & {"numpy", "anndata", "pandas", "scipy", "pydantic"}


# The time of a fit


@given(
    n=st.integers(1, 10**7),
    d=st.integers(1, 100),
    k=st.integers(1, 50),
    n_init=st.integers(1, 20),
    split_merge=st.integers(0, 3),
    n_threads=st.integers(1, 16),
    kind=st.sampled_from(["full", "diag"]),
)
def test_the_work_of_a_plain_fit_is_what_is_asked_for(n, d, k, n_init, split_merge, n_threads, kind):
    """Whatever a unit of work takes: the time of large fits is proportional to every factor (threads: their root)."""

    def asked(**changes):
        given = {"n": n, "d": d, "k": k, "n_init": n_init, "split_merge": split_merge, "n_threads": n_threads} | changes
        size = (given.pop("n") * 10**14, given.pop("d"))  # so many cells that whole minutes are no matter
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(requests, "cells_shape", lambda path: size)
            return minutes(__file__, covariance_type=kind, **given)

    one = asked()
    assert one > requests.REQUESTS["fit"].minutes
    for changes, factor in (
        ({"n": 3 * n}, 3),
        ({"k": 2 * k}, 2),
        ({"n_init": 2 * n_init}, 2),
        ({"split_merge": split_merge + 1}, (split_merge + 2) / (split_merge + 1)),
        ({"n_threads": 2 * n_threads}, 0.5**0.5),  # threads share the work, but not all of it
        ({"d": 2 * d}, 4 if kind == "full" else 2),
    ):
        assert asked(**changes) == pytest.approx(factor * one, rel=1e-3, abs=2)


def test_every_further_start_of_a_corrected_fit_takes_as_long(tmp_path):
    path = archive(tmp_path / "x.npz", header((10**9, 5)))
    times = [minutes(path, 3, missing=True, n_init=n) for n in (1, 2, 3)]
    assert times[2] - times[1] == pytest.approx(times[1] - times[0], abs=1)
    assert times[1] > times[0]


def test_a_fit_of_another_file_asks_for_the_least(tmp_path):
    path = tmp_path / "patients.tsv"
    path.write_text("patient\nP1\n")
    assert minutes(path, 50) == requests.REQUESTS["fit"].minutes


class MergeInput(list):
    """Snakemake's input of a merge."""

    def __init__(self, folder, n_cells, sizes):
        (folder / "positions.npz").write_bytes(bytes(8 * n_cells))
        for i, size in enumerate(sizes):
            (folder / f"m{i}.npz").write_bytes(bytes(size))
        self.positions = str(folder / "positions.npz")
        self.models = [str(folder / f"m{i}.npz") for i in range(len(sizes))]
        super().__init__([self.positions, *self.models])


def test_a_merge_asks_for_responsibilities_and_for_one_patient_at_a_time(tmp_path):
    base = requests.SNAKEMAKE_MB + requests.REQUESTS["merge"].memory
    full, diag = (gmm(k_comps=[2, 20], covariance_type=kind) for kind in ("full", "diag"))
    cells = MergeInput(tmp_path, 500_000, [])
    assert requests.merge_memory("merge", full)(None, cells, 1) == base + int(requests._RESPONSIBILITIES * 20 * 4)
    models = MergeInput(tmp_path, 0, [1_000_000] * 9 + [4_000_000])
    assert requests.merge_memory("merge", full)(None, models, 1) == base + 4 * requests._LARGEST
    assert requests.merge_memory("merge", full)(None, models, 2) == 2 * (base + 4 * requests._LARGEST)
    assert requests.merge_memory("merge", diag)(None, models, 1) == base + 4 * requests._LARGEST + 3 * 13
    nothing = MergeInput(tmp_path, 0, [])
    nothing.positions, nothing[:] = "not there", ["not there"]
    assert requests.merge_memory("merge", full)(None, nothing, 1) == base


def test_a_fit_of_full_covariances_asks_for_its_matrices(tmp_path):
    input = Files([str(cells_file(tmp_path, 100, 400))])
    wildcards = SimpleNamespace(k="10")
    plain = requests.fit_memory("fit", gmm(covariance_type="diag"))(wildcards, input, 1)
    matrices = int(requests._FULL_MATRICES * 8 * 10 * 400**2 / 1e6)
    assert requests.fit_memory("fit", gmm())(wildcards, input, 1) == plain + matrices
    assert requests.fit_memory("fit", gmm())(wildcards, input, 2) == pytest.approx(2 * (plain + matrices), abs=2)
    kept, again = (requests.fit_memory("refit", gmm(k_comps=[2, 10], refit=way)) for way in ("none", "full"))
    assert again(SimpleNamespace(), input, 1) - kept(SimpleNamespace(), input, 1) == matrices


def test_a_split_asks_for_the_names_of_the_cells(tmp_path):
    n = 50_000
    cohort = ad.AnnData(obs={"patient": ["P"] * n}, obsm={"X": np.zeros((n, 2), dtype=np.float32)})
    cohort.write_h5ad(tmp_path / "x.h5ad")
    files, parts = [str(tmp_path / "x.h5ad")], ("obs", "obsm")
    extra = requests.split_memory("split", parts)(None, files, 1) - requests.memory("split", parts)(None, files, 1)
    assert extra == int(requests._NAMES * requests.megabytes(files[0], ("obs",)))
    assert extra >= 3
