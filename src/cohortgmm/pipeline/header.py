"""Check before the first job that the input has the columns and keys which the configuration names.

A short process, which imports only h5py, reads the header of the input. If something seems wrong, a second process
(``python -m cohortgmm.pipeline.header``) calls the functions that the jobs use, and returns their error messages.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cohortgmm.cohort.occupied import has_mixtures
from cohortgmm.columns import columns_of
from cohortgmm.errors import CohortgmmError, DataError
from cohortgmm.pipeline.stored import contents

#: Prefix of a value of ``preprocess.counts`` that names a layer.
_LAYER = "layer:"

_UMAP = "obsm/X_umap"


def check_header(config: Any) -> None:
    """Raise an error if the input lacks columns or keys that the configuration names.

    Parameters
    ----------
    config
        The checked configuration, with its files found.

    Raises
    ------
    DataError
        With the messages that the jobs would give, one line for each problem.
    """
    wanted = wanted_of(config)
    if not seems_wrong(config.input, wanted):
        return
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-m", "cohortgmm.pipeline.header", os.path.abspath(config.input), config.input]
    result = subprocess.run(
        command,
        input=json.dumps(wanted).encode(),
        cwd=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    # If this process fails, the job that reads the input reports the problem.
    if result.returncode == 0 and (lines := json.loads(result.stdout)):
        raise DataError("\n".join(lines))


def wanted_of(config: Any) -> dict[str, Any]:
    """The columns and elements that the input must have for a configuration.

    Returns
    -------
    dict
        ``columns``: pairs of configuration key and column of ``obs``; ``symbols``: column of ``var``; ``counts``: place
        of the raw counts; ``embedding``: whether the input must contain ``use_rep``, which preprocessing computes
        otherwise; ``use_rep``, ``noise``, ``gmm_key``, ``patient_col`` and ``umap`` (section ``qc``): as configured.
    """
    patients = config.patient_col if isinstance(config.patient_col, list) else [config.patient_col]
    columns = [("patient_col", column) for column in patients]
    columns += [(key, getattr(config, key)) for key in ("label_col", "celltype_col")]
    preprocess, noise = config.preprocess, config.gmm.noise
    if preprocess.enabled:
        columns += [(f"preprocess.{key}", getattr(preprocess, key)) for key in ("hvg_batch_col", "harmony_col")]
    return {
        "columns": [pair for pair in columns if pair[1] is not None],
        "symbols": getattr(preprocess, "symbols", None) if preprocess.enabled else None,
        "counts": getattr(preprocess, "counts", "X") if preprocess.enabled else None,
        "embedding": not preprocess.enabled,
        "use_rep": config.use_rep,
        "gmm_key": config.gmm_key,
        "patient_col": config.patient_col,
        "umap": config.qc.umap,
        "noise": None if noise is None else noise.model_dump(include={"obsm", "layer"}),
    }


def seems_wrong(path: str | os.PathLike, wanted: Mapping[str, Any]) -> bool:
    """Whether the header of a file cannot be read or lacks something that :func:`wanted_of` lists."""
    found = contents(path)
    if found is None or not {"obs", "var"} <= set(found["root"]) or "mod" in found["root"]:
        return True
    columns, shapes = found["columns"], found["shapes"]
    if columns["obs"] is None:
        return True
    if any(columns["obs"].count(column) != 1 for _, column in wanted["columns"]):
        return True
    if wanted["symbols"] is not None and wanted["symbols"] not in (columns["var"] or ()):
        return True
    if _is_occupied(wanted["gmm_key"], wanted["patient_col"], found):
        return True
    n_cells = found["n_cells"]
    if wanted["umap"] and _UMAP in shapes and _is_no_umap(shapes[_UMAP], n_cells):
        return True
    return any(_is_missing(place, found["root"], shapes, wanted, n_cells) for place in _places(wanted))


def _is_occupied(gmm_key: str, patient_col: Any, found: Mapping[str, Any]) -> bool:
    """Whether the result would overwrite something in the input that is not an earlier result."""
    if gmm_key in found["uns"]:
        entry = found["uns"][gmm_key]
        return not has_mixtures(entry | {"model": dict.fromkeys(entry.get("model", ()))})
    names = {f"obs/{column}" for column in found["columns"]["obs"]} | set(found["shapes"])
    written = [f"obs/{column}" for column in columns_of(gmm_key, patient_col)]
    return bool(names & {*written, f"obsm/{gmm_key}_resp"})


def _is_no_umap(shape: list[int] | None, n_cells: int | None) -> bool:
    return shape is None or len(shape) != 2 or shape[0] != n_cells or shape[1] < 2


def _places(wanted: Mapping[str, Any]) -> Iterator[str]:
    """Paths of the elements that the input must have."""
    if wanted["embedding"]:
        yield _embedding_path(wanted["use_rep"])
    if wanted["counts"] is not None:
        yield _counts_path(wanted["counts"])
    if wanted["noise"] is not None:
        yield _noise_path(wanted["noise"])


def _embedding_path(use_rep: str | None) -> str:
    return "X" if use_rep is None else f"obsm/{use_rep}"


def _counts_path(place: str) -> str:
    return f"layers/{place.removeprefix(_LAYER)}" if place.startswith(_LAYER) else place


def _noise_path(noise: Mapping[str, str | None]) -> str:
    return f"obsm/{noise['obsm']}" if noise["obsm"] else f"layers/{noise['layer']}"


def _is_missing(
    path: str, root: list[str], shapes: Mapping[str, Any], wanted: Mapping[str, Any], n_cells: int | None
) -> bool:
    """Whether an element is missing, or has a wrong shape according to its header."""
    if path == "raw":
        return not {"raw", "raw.X"} & set(root)
    shape, x = shapes.get(path), shapes.get(_embedding_path(wanted["use_rep"]))
    if shape is None or not shape or shape[0] != n_cells:
        return True
    if wanted["noise"] is None or path != _noise_path(wanted["noise"]) or not wanted["embedding"] or x is None:
        return False
    return len(x) == 2 and tuple(shape) not in ((x[0], x[1]), (x[0], x[1], x[1]), (x[0], x[1] ** 2))


# The second process


def explain(path: str, wanted: Mapping[str, Any]) -> list[str]:
    """The error messages that the jobs' functions give about a file; empty if they accept it."""
    from cohortgmm.cohort.h5ad import open_h5ad
    from cohortgmm.cohort.occupied import check_file
    from cohortgmm.cohort.patients import check_columns

    lines: dict[str, None] = {}

    def collect(check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except CohortgmmError as error:
            lines[" ".join(str(error).split())] = None

    def check_all() -> None:
        with open_h5ad(path) as file:
            for pair in wanted["columns"]:
                collect(check_columns, file, [pair])
            for check in (_explain_embedding, _explain_noise, _explain_counts, _explain_symbols):
                collect(check, file, wanted)
            if wanted["umap"] and _UMAP in file:
                collect(_explain_umap, file)
            collect(check_file, file, wanted["gmm_key"], wanted["patient_col"])

    collect(check_all)
    return list(lines)


def _explain_embedding(file: Any, wanted: Mapping[str, Any]) -> None:
    from cohortgmm.cohort.reading import read_embedding

    if wanted["embedding"] and (wanted["use_rep"] is not None or "X" not in file):
        read_embedding(file, wanted["use_rep"])


def _explain_noise(file: Any, wanted: Mapping[str, Any]) -> None:
    import numpy as np

    from cohortgmm.cohort.reading import as_noise, read_noise

    if wanted["noise"] is None:
        return
    path = _noise_path(wanted["noise"])
    if path not in file:
        read_noise(file, wanted["noise"], (0, 0))
        return
    x = _shape_in(file, _embedding_path(wanted["use_rep"]))
    shape = _shape_in(file, path)
    if wanted["embedding"] and x is not None and shape is not None:
        group, _, key = path.partition("/")
        as_noise(np.broadcast_to(np.float32(1), shape), f"{group}[{key!r}]", tuple(x))


def _explain_umap(file: Any) -> None:
    from cohortgmm.cohort.annotation import read_umap

    read_umap(file)


def _shape_in(file: Any, path: str) -> list[int] | None:
    from cohortgmm.pipeline.stored import _shape

    return _shape(file.get(path))


def _explain_counts(file: Any, wanted: Mapping[str, Any]) -> None:
    from cohortgmm.cohort.h5ad import n_rows, unknown_name

    place = wanted["counts"]
    if place is None or _counts_path(place) in file or f"{place}.X" in file:
        return
    if place.startswith(_LAYER):
        raise unknown_name("preprocess.counts: layer", place.removeprefix(_LAYER), file.get("layers", {}))
    if place == "raw":
        raise DataError("preprocess.counts is raw, but the input has no raw; set it to X or layer:NAME")
    raise DataError(f"preprocessing needs raw counts in X; the input has {n_rows(file, 'obs')} cells and no X")


def _explain_symbols(file: Any, wanted: Mapping[str, Any]) -> None:
    from cohortgmm.cohort.h5ad import unknown_name

    columns = [str(name) for name in file["var"].attrs.get("column-order", ())]
    if wanted["symbols"] is not None and wanted["symbols"] not in columns:
        raise unknown_name("preprocess.symbols: var column", wanted["symbols"], columns)


def main() -> None:
    """Print the messages about a file. Arguments: its path and its name in messages; stdin: :func:`wanted_of`."""
    path, name = sys.argv[1:]
    lines = explain(path, json.load(sys.stdin))
    print(json.dumps([line.replace(path, name) for line in lines]))


if __name__ == "__main__":
    main()
