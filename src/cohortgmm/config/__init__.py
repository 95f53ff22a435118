"""The configuration: every key with its type, range, default and meaning, in one place.

The schema in ``workflow/schemas``, the table in ``config/README.md`` and the checks of :func:`cohortgmm.fit_gmm` all
come from the models below.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cohortgmm.columns import joined_column, unit_column
from cohortgmm.config.gmm import GmmConfig, default_gmm_key
from cohortgmm.config.problems import Conflict, Number, Section, section_of
from cohortgmm.display import format_path, format_repr
from cohortgmm.errors import ConfigError

#: Keys of ``uns`` that the preprocessing writes.
_OF_PREPROCESSING = ("cohortgmm_preprocess", "hvg", "log1p", "pca")


class PreprocessConfig(Section):
    """From raw counts to an embedding, with scanpy."""

    enabled: bool = Field(
        True, description="Compute the embedding from raw counts. false: the input already holds `use_rep`."
    )
    counts: str = Field(
        "X",
        description="Where the raw counts are: `X`, `raw` (`adata.raw`, with its own genes) or `layer:NAME`. The input's X "
        "is then kept as a layer, `X_input`.",
    )
    symbols: str | None = Field(
        None,
        description="Column of `var` with gene symbols, by which mitochondrial genes are found; null: the names of the "
        "genes themselves.",
    )
    min_counts: int = Field(0, ge=0, description="Drop cells with fewer counts.")
    min_genes: int = Field(0, ge=0, description="Drop cells with fewer detected genes.")
    max_mito_percent: Number = Field(
        100.0,
        ge=0,
        le=100,
        description="Drop cells with a larger share of counts in mitochondrial genes: `MT-`, `mt-`, `MT.`, `mt:`, also "
        "after the name of a genome (`GRCh38_MT-`). That no gene is called so is an error; 100: no filter.",
    )
    min_cells_per_gene: int = Field(3, ge=0, description="Drop genes detected in fewer cells.")
    target_sum: Number = Field(1e4, gt=0, description="Counts per cell after normalisation.")
    n_top_genes: int = Field(2000, ge=2, description="Number of highly variable genes that go into the PCA.")
    hvg_batch_col: str | None = Field(
        None, description="Column of `obs`: highly variable genes are chosen within each batch and combined."
    )
    n_pcs: int = Field(20, ge=2, description="Number of principal components.")
    harmony_col: str | None = Field(
        None,
        description="Column of `obs` with the batch that Harmony corrects for; the embedding is then `X_pca_harmony`.",
    )

    @field_validator("counts")
    @classmethod
    def _check_counts(cls, value: str) -> str:
        if value not in ("X", "raw") and not re.fullmatch(r"layer:.+", value, re.DOTALL):
            raise ValueError(f"must be X, raw or layer:NAME, got {value!r}")
        return value


class QcConfig(Section):
    """Figures and report."""

    patient_figures: bool = Field(True, description="One figure per patient (one short job each).")
    umap: bool = Field(True, description="Compute a UMAP for the figures where `obsm['X_umap']` is not there already.")
    max_cells: int = Field(
        20000, ge=100, description="Most cells that go into the UMAP and into a figure (a seeded draw)."
    )


class Config(Section):
    """The whole configuration file."""

    input: str = Field(
        min_length=1,
        description="The cohort: an `.h5ad` file. A relative path is taken from the working directory or, where nothing "
        "is there, from the workflow's folder; `~` and variables such as `$HOME` are replaced. It must not be one of this "
        "run's own results. (The same holds for all files of the configuration.)",
    )
    patient_col: str | list[str] = Field(
        description="Column of `obs` that names the patient (sample, donor) of every cell, or several whose texts are "
        "joined by `_`: `[patient, timepoint]` gives a mixture for every patient and time point, and the result has the "
        "joined text in `obs[<gmm_key>_patient]`."
    )
    label_col: str | None = Field(None, description="Column of `obs` with the patient's group, for tables and figures.")
    on_mixed_label: Literal["error", "majority"] = Field(
        "error",
        description="Patients whose cells have several labels: `error` stops the run and names the column that divides "
        "them, `majority` takes the commonest label (of a tie the first by name) and records it. Cells without a label "
        "do not count.",
    )
    celltype_col: str | None = Field(
        None, description="Column of `obs` with cell types, for the composition of the components."
    )
    use_rep: str | None = Field(
        "X_pca", description="Key of `obsm` that is modelled; null is X itself (without preprocessing)."
    )
    patients: str | None = Field(
        None,
        description="Sample sheet (TSV with a column `patient`): only these patients are modelled, and a dry run shows "
        "their jobs before the cohort has been split. null: all patients of the input.",
    )
    min_cells: int = Field(
        20, ge=2, description="Fewest cells a patient must have, not counting cells without any feature."
    )
    on_small_patient: Literal["error", "drop"] = Field(
        "error",
        description="A patient below `min_cells`, or too small for every k: `error` stops the run, `drop` leaves the "
        "patient out and records it.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**32 - 1,  # what scanpy, Harmony and UMAP take
        description="Seed of everything random; each fit derives its own from patient and k.",
    )
    threads: int = Field(
        1,
        ge=1,
        description="Most threads of a fit: as many as may have a minute of work each, as with noise of the cells' own or "
        "`component_sharing: global`; the result is the same.",
    )
    preprocess: PreprocessConfig = PreprocessConfig()
    gmm: GmmConfig = GmmConfig()
    qc: QcConfig = QcConfig()

    def conflicts(self) -> list[Conflict]:
        found = [(tuple(f"gmm.{key}" for key in keys), f"gmm: {text}") for keys, text in self.gmm.conflicts()]
        if self.gmm.gmm_key is None and "/" in (self.use_rep or ""):
            message = f"use_rep is {self.use_rep!r}, and a key of uns can have no '/': set gmm.gmm_key"
            found.append((("use_rep", "gmm.gmm_key"), message))
        columns = self.patient_col if isinstance(self.patient_col, list) else [self.patient_col]
        if not columns or len(set(columns)) < len(columns):
            found.append(
                (("patient_col",), f"patient_col: needs one column or several different ones, got {columns!r}")
            )
        read = {"patient_col": columns, "label_col": self.label_col, "celltype_col": self.celltype_col}
        noise = self.gmm.noise.obsm if self.gmm.noise else None
        for key, what in overwritten(self.gmm_key, read, {"use_rep": self.use_rep, "gmm.noise.obsm": noise}):
            message = f"{key}: the result overwrites {what}: choose another gmm.gmm_key"
            found.append(((key, "gmm.gmm_key"), message))
        if self.preprocess.enabled and self.gmm_key in _OF_PREPROCESSING:
            message = f"gmm.gmm_key is {self.gmm_key!r}, where the preprocessing keeps its own results: choose another"
            found.append((("gmm.gmm_key", "preprocess.enabled"), message))
        made = "X_pca_harmony" if self.preprocess.harmony_col else "X_pca"
        if self.preprocess.enabled and self.use_rep != made:
            message = (
                f"use_rep is {self.use_rep!r}, but preprocessing makes {made!r}: set use_rep to that, or "
                "preprocess.enabled to false to use an embedding that is in the input"
            )
            found.append((("use_rep", "preprocess.enabled", "preprocess.harmony_col"), message))
        return found

    @property
    def gmm_key(self) -> str:
        """Key of the result in ``uns``."""
        return self.gmm.gmm_key or default_gmm_key(self.use_rep)

    @property
    def patient_column(self) -> str:
        """Column of ``obs`` of the result that names the patient of every cell."""
        return unit_column(self.patient_col, self.gmm_key)

    @property
    def component_sharing(self) -> str:
        """``gmm.component_sharing`` with ``auto`` resolved: the pipeline reads AnnData."""
        return "sample_specific" if self.gmm.component_sharing == "auto" else self.gmm.component_sharing

    def further_columns(self) -> dict[str, str | None]:
        """Columns of ``obs`` that are needed besides those of patients and labels, by their keys."""
        batches = {f"preprocess.{key}": getattr(self.preprocess, key) for key in ("hvg_batch_col", "harmony_col")}
        return {"celltype_col": self.celltype_col, **(batches if self.preprocess.enabled else {})}

    def provenance_json(self) -> str:
        """What the merged file depends on, as JSON: everything but what concerns figures and logs."""
        files = {key: format_path(path) for key, path in self.gmm.files.items()}
        named = {key: path and format_path(path) for key, path in (("input", self.input), ("patients", self.patients))}
        plain = self.model_copy(update=named | {"gmm": self.gmm.with_files(files)})
        return plain.model_dump_json(exclude={"qc": True, "gmm": {"verbose"}})

    def split_options(self) -> dict[str, Any]:
        """What the division into patients depends on."""
        return {
            "patient_col": self.patient_col,
            "label_col": self.label_col,
            "on_mixed_label": self.on_mixed_label,
            "use_rep": self.use_rep,
            "component_sharing": self.component_sharing,
            "train_size": self.gmm.effective_train_size,
            "seed": self.seed,
            "noise": None if self.gmm.noise is None else self.gmm.noise.model_dump(exclude={"at"}),
            "missing": self.gmm.missing,
            "smallest_k": min(self.gmm.candidates),
            "min_cells": self.min_cells,
            "on_small_patient": self.on_small_patient,
        }


class PatientRow(BaseModel):
    """A row of the sample sheet. Further columns are allowed and ignored."""

    model_config = ConfigDict(extra="allow")

    patient: str = Field(description="Patient id as in `patient_col`.", min_length=1)


def read_config(config: Mapping[str, Any], source: str = "config") -> Config:
    """Check a configuration.

    Parameters
    ----------
    config
        The parsed YAML.
    source
        What to call it in messages.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        Naming all problems at once, one line each, with the dotted path of the key.
    """
    return _validated(Config, config, source)


def read_gmm_options(options: Mapping[str, Any]) -> GmmConfig:
    """Check the arguments of a fit; as :func:`read_config`."""
    # Notebooks compute arguments: numpy's numbers count as numbers.
    plain = {
        key: value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value
        for key, value in options.items()
    }
    return _validated(GmmConfig, plain, "fit_gmm")


def _validated(model: type[Section], values: Mapping[str, Any], source: str) -> Any:
    # A section whose keys are all commented out reads as None.
    values = {key: {} if value is None and _is_section(model, key) else value for key, value in values.items()}
    problems, faulty, misspelt = [], set(), set()
    try:
        result = model.model_validate(values)
    except ValidationError as error:
        items = _one_for_each_key(values, error.errors())
        problems = [_problem(model, item) for item in items]
        faulty = {tuple(map(str, item["loc"])) for item in items}
        misspelt = {".".join(map(str, item["loc"][:-1])) for item in items if item["type"] == "extra_forbidden"}
        # Go on with what is left, so that conflicts among good keys are reported in the same breath.
        result = model.model_validate(_without(values, faulty))
    bad_keys = {".".join(path) for path in faulty}
    for keys, message in result.conflicts():
        # A fault within a key (an element of a list) or above it (a whole section) is one of the key.
        # What a section lacks may be what was misspelt in it.
        if any("." in key and key.rpartition(".")[0] in misspelt for key in keys):
            continue
        pairs = ((f"{key}.", f"{bad}.") for key in keys for bad in bad_keys)
        if not any(key.startswith(bad) or bad.startswith(key) for key, bad in pairs):
            problems.append(message)
    if len(problems) > 1:
        raise ConfigError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))
    if problems:
        raise ConfigError(f"{source}: {problems[0]}")
    return result


def _one_for_each_key(values: Mapping[str, Any], errors: Sequence[Any]) -> list[dict[str, Any]]:
    """Pydantic's errors without its names for the branches of a type, and those about one key together."""
    found: dict[tuple, dict[str, Any]] = {}
    for error in errors:
        value, path = values, []
        for part in error["loc"]:
            inside = part in value if isinstance(value, Mapping) else isinstance(part, int)
            if inside and isinstance(value, (Mapping, list, tuple)):
                value = value[part]
            elif error["type"] != "missing":
                continue
            path.append(part)
        first = found.setdefault(tuple(path), {**error, "loc": tuple(path)})
        if error["msg"] not in first["msg"]:
            first["msg"] = f"{first['msg']} or {error['msg'][0].lower()}{error['msg'][1:]}"
    deeper = {path[:i] for path in found for i in range(len(path))}
    return [error for path, error in found.items() if path not in deeper]


def _is_section(model: type[BaseModel], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def overwritten(gmm_key: str, columns: Mapping[str, Any], obsm: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """What a result is made from and would be written over.

    Parameters
    ----------
    gmm_key
        Key of the result.
    columns, obsm
        Columns of ``obs``, one or a list, and keys of ``obsm`` that are read, by the configuration keys that name them.

    Returns
    -------
    list
        Configuration key of each, and what it is.
    """
    found = []
    for name, value in columns.items():
        several = isinstance(value, list | tuple)
        written = [f"{gmm_key}_comp", f"{gmm_key}_background"]
        if (unit := joined_column(value, gmm_key)) is not None:
            written.append(unit)
        for column in value if several else [value]:
            if column in written:
                found.append((name, f"the column {column!r}"))
    for name, value in obsm.items():
        if value == f"{gmm_key}_resp":
            found.append((name, f"obsm[{value!r}]"))
    return found


def _without(values: Mapping[str, Any], faulty: Collection[tuple[str, ...]]) -> dict[str, Any]:
    """The values without faulty keys; a key that is required and missing gets some text."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = [path[1:] for path in faulty if path[0] == str(key)]
        if not inner:
            result[key] = value
        elif isinstance(value, Mapping) and all(inner):
            result[key] = _without(value, inner)
    return result | {path[0]: "missing" for path in faulty if path and path[0] in ("input", "patient_col")}


def _problem(model: type[BaseModel], item: Any) -> str:
    path, value = item["loc"], item["input"]
    names = [str(part) for part in path]
    dotted = ".".join(names)
    if item["type"] == "extra_forbidden":
        for part in names[:-1]:
            if not part.isdigit():
                model = section_of(model.model_fields[part].annotation)
        close = difflib.get_close_matches(names[-1], model.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(model.model_fields)}"
        return f"{dotted}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{dotted}: is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {format_repr(value)}"
