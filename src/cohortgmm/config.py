"""The configuration: every key with its type, range, default and meaning, in one place.

The schema in ``workflow/schemas``, the table in ``config/README.md`` and the checks of :func:`cohortgmm.fit_gmm` all
come from the models below.
"""

import difflib
import operator
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from cohortgmm.errors import ConfigError

#: Candidates for k where none are given; those a patient is too small for are left out for that patient.
DEFAULT_K = tuple(range(1, 11))


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 (no dot) as text.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]


#: Dotted keys that do not go together, and why.
Conflict = tuple[tuple[str, ...], str]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def conflicts(self) -> list[Conflict]:
        """Keys that are good by themselves and do not go together."""
        return []


class GmmConfig(_Section):
    """How the mixtures are fitted: the arguments of `cohortgmm.fit_gmm`."""

    component_sharing: Literal["sample_specific", "global", "auto"] = Field(
        "sample_specific",
        description="`sample_specific`: one independent mixture per patient. `global`: one mixture over all cells, each "
        "patient with its own weights. `auto`: `sample_specific` for AnnData (and so here), `global` for a mapping of "
        "arrays.",
    )
    k_comps: int | list[int] | None = Field(
        None,
        description="Number of components: an integer fixes it (fitted on all cells, no selection); a list gives the "
        "candidates to select from (a list of one fixes it); null is 1 to 10, each patient up to what its cells can carry.",
    )
    k_selection_metric: Literal["aic", "bic", "heldout_nll"] = Field(
        "aic", description="Criterion that chooses k. All three are tabulated whatever is chosen here."
    )
    refit: Literal["none", "full"] = Field(
        "none",
        description="`none`: keep the mixture fitted on the training cells. `full`: fit the chosen k once more on all "
        "cells of the patient.",
    )
    covariance_type: Literal["full", "diag"] = Field("full", description="Shape of the covariances.")
    train_size: Number = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a patient's cells used to fit the candidates; the rest is held out. 1 holds nothing out "
        "and needs `aic` or `bic`.",
    )
    max_iter: int = Field(100, ge=1, description="Largest number of EM iterations of a fit.")
    tol: Number = Field(
        1e-3, ge=0, description="A fit has converged when the mean log-likelihood per cell gains less than this (nats)."
    )
    n_init: int = Field(1, ge=1, description="Starts per fit; the one that ends at the highest likelihood is kept.")
    eps: Number = Field(1e-4, gt=0, description="Floor under the eigenvalues of the covariances.")
    singularity_handling: Literal["guarded", "robust", "strict"] = Field(
        "guarded",
        description="What happens to an eigenvalue below the floor. `guarded`: raised to `eps`. `robust`: raised to 1 % "
        "of the mean variance of the features. `strict`: an error that names patient, k and component.",
    )
    init: Literal["kmeans", "kmeans++", "random", "minmax"] = Field(
        "kmeans",
        description="How a fit starts. `kmeans`: clusters of k-means; `kmeans++`: those around its seeds; `random`: "
        "cells as means; `minmax`: means drawn from the box that holds the cells.",
    )
    split_merge: int = Field(
        0,
        ge=0,
        description="Rounds of split-and-merge moves after every start: two similar components are merged and another "
        "one is split where that ends at a higher likelihood. Better optima for about seven times the work.",
    )
    gmm_key: str | None = Field(
        None, min_length=1, pattern="^[^/]+$", description="Key of the result in `uns`; null is `gmm_<use_rep>`."
    )
    verbose: bool = Field(True, description="Write the progress of every fit to its log.")

    @field_validator("k_comps", mode="before")
    @classmethod
    def _check_k(cls, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, (str, bytes, Mapping, bool, float)):
            raise ValueError(f"must be an integer, a list of integers or null, got {value!r}")
        try:
            values, several = list(value), True
        except TypeError:
            values, several = [value], False
        if not values:
            raise ValueError("is an empty list: name at least one k, or use null")
        ks = []
        for k in values:
            try:
                number = 0 if isinstance(k, bool) else operator.index(k)
            except TypeError:
                number = 0
            if number < 1:
                raise ValueError(f"must hold integers of at least 1, got {k!r}")
            ks.append(number)
        return sorted(set(ks)) if several else ks[0]

    @field_validator("gmm_key")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        if value == ".":
            raise ValueError("must not be '.', which stands for the whole of `uns`")
        return value

    def conflicts(self) -> list[Conflict]:
        if self.train_size < 1 or self.k_selection_metric != "heldout_nll" or self.fixed_k is not None:
            return []
        message = (
            "train_size 1 holds no cells out, which k_selection_metric heldout_nll needs: lower train_size or choose "
            "aic or bic"
        )
        return [(("train_size", "k_selection_metric", "k_comps"), message)]

    @property
    def fixed_k(self) -> int | None:
        """The number of components if there is nothing to select, else None."""
        if isinstance(self.k_comps, int):
            return self.k_comps
        return self.k_comps[0] if self.k_comps is not None and len(self.k_comps) == 1 else None

    @property
    def candidates(self) -> tuple[int, ...]:
        """All k that are fitted."""
        if self.k_comps is None:
            return DEFAULT_K
        return (self.k_comps,) if isinstance(self.k_comps, int) else tuple(self.k_comps)

    @property
    def effective_train_size(self) -> float:
        """``train_size``, or 1 where k is fixed: with nothing to select, all cells are fitted."""
        return 1.0 if self.fixed_k is not None else self.train_size

    def fit_options(self) -> dict[str, Any]:
        """What a single fit depends on."""
        names = ("covariance_type", "max_iter", "tol", "n_init", "eps", "singularity_handling", "init", "split_merge")
        return {name: getattr(self, name) for name in names}


class PreprocessConfig(_Section):
    """From raw counts to an embedding, with scanpy."""

    enabled: bool = Field(
        True, description="Compute the embedding from raw counts in X. false: the input already holds `use_rep`."
    )
    min_counts: int = Field(0, ge=0, description="Drop cells with fewer counts.")
    min_genes: int = Field(0, ge=0, description="Drop cells with fewer detected genes.")
    max_mito_percent: Number = Field(
        100.0, ge=0, le=100, description="Drop cells with a larger share of counts in mitochondrial genes (`MT-`)."
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


class QcConfig(_Section):
    """Figures and report."""

    patient_figures: bool = Field(True, description="One figure per patient (one short job each).")
    umap: bool = Field(True, description="Compute a UMAP for the figures where `obsm['X_umap']` is not there already.")
    max_cells: int = Field(
        20000, ge=100, description="Most cells that go into the UMAP and into a figure (a seeded draw)."
    )


class Config(_Section):
    """The whole configuration file."""

    input: str = Field(
        min_length=1,
        description="The cohort: an `.h5ad` file. A relative path is taken from the working directory or, where nothing "
        "is there, from the workflow's folder.",
    )
    patient_col: str = Field(description="Column of `obs` that names the patient (sample, donor) of every cell.")
    label_col: str | None = Field(None, description="Column of `obs` with the patient's group, for tables and figures.")
    celltype_col: str | None = Field(
        None, description="Column of `obs` with cell types, for the composition of the components."
    )
    use_rep: str | None = Field(
        "X_pca", description="Key of `obsm` that is modelled; null is X itself (without preprocessing)."
    )
    patients: str | None = Field(
        None,
        description="Sample sheet (TSV with a column `patient`): only these patients are modelled, and a dry run shows "
        "every job that may run. null: all patients of the input.",
    )
    min_cells: int = Field(20, ge=2, description="Fewest cells a patient must have.")
    on_small_patient: Literal["error", "drop"] = Field(
        "error",
        description="A patient below `min_cells`, or too small for every k: `error` stops the run, `drop` leaves the "
        "patient out and records it.",
    )
    seed: int = Field(0, ge=0, description="Seed of everything random; each fit derives its own from patient and k.")
    threads: int = Field(
        1,
        ge=1,
        description="Threads of a fit. More pay for fits of some 100,000 cells, as with `component_sharing: global`; "
        "the result is the same.",
    )
    preprocess: PreprocessConfig = PreprocessConfig()
    gmm: GmmConfig = GmmConfig()
    qc: QcConfig = QcConfig()

    def conflicts(self) -> list[Conflict]:
        found = [(tuple(f"gmm.{key}" for key in keys), f"gmm: {text}") for keys, text in self.gmm.conflicts()]
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
    def component_sharing(self) -> str:
        """``gmm.component_sharing`` with ``auto`` resolved: the pipeline reads AnnData."""
        return "sample_specific" if self.gmm.component_sharing == "auto" else self.gmm.component_sharing

    def split_options(self) -> dict[str, Any]:
        """What the division into patients depends on."""
        return {
            "patient_col": self.patient_col,
            "label_col": self.label_col,
            "use_rep": self.use_rep,
            "component_sharing": self.component_sharing,
            "train_size": self.gmm.effective_train_size,
            "seed": self.seed,
            "smallest_k": min(self.gmm.candidates),
            "min_cells": self.min_cells,
            "on_small_patient": self.on_small_patient,
        }


class PatientRow(BaseModel):
    """A row of the sample sheet. Further columns are allowed and ignored."""

    model_config = ConfigDict(extra="allow")

    patient: str = Field(description="Patient id as in `patient_col`.", min_length=1)


def default_gmm_key(use_rep: str | None) -> str:
    """Key under which ggml_ot looks for a mixture of this embedding."""
    return f"gmm_{use_rep or 'X'}"


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


def _validated(model: type[_Section], values: Mapping[str, Any], source: str) -> Any:
    # A section whose keys are all commented out reads as None.
    values = {key: {} if value is None and _is_section(model, key) else value for key, value in values.items()}
    problems, faulty = [], set()
    try:
        result = model.model_validate(values)
    except ValidationError as error:
        items = error.errors()
        problems = [_problem(model, item) for item in items]
        faulty = {tuple(map(str, item["loc"])) for item in items}
        # Go on with what is left, so that conflicts among good keys are reported in the same breath.
        result = model.model_validate(_without(values, faulty))
    bad_keys = {".".join(path) for path in faulty}
    for keys, message in result.conflicts():
        # A fault within a key (an element of a list) or above it (a whole section) is one of the key.
        pairs = ((f"{key}.", f"{bad}.") for key in keys for bad in bad_keys)
        if not any(key.startswith(bad) or bad.startswith(key) for key, bad in pairs):
            problems.append(message)
    if len(problems) > 1:
        raise ConfigError("\n  ".join([f"{source}: {len(problems)} problems", *problems]))
    if problems:
        raise ConfigError(f"{source}: {problems[0]}")
    return result


def _is_section(model: type[BaseModel], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _without(values: Mapping[str, Any], faulty: Collection[tuple[str, ...]]) -> dict[str, Any]:
    """The values without faulty keys; a key that is required and missing gets some text."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = [path[1:] for path in faulty if path[0] == str(key)]
        if not inner:
            result[key] = value
        elif isinstance(value, Mapping) and all(inner):
            result[key] = _without(value, inner)
    return result | {path[0]: "missing" for path in faulty if path in (("input",), ("patient_col",))}


def _problem(model: type[BaseModel], item: Any) -> str:
    path, value = item["loc"], item["input"]
    names = [str(part) for part in path]
    dotted = ".".join(names)
    if item["type"] == "extra_forbidden":
        for part in names[:-1]:
            model = model.model_fields[part].annotation
        close = difflib.get_close_matches(names[-1], model.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(model.model_fields)}"
        return f"{dotted}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{dotted}: is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message[0].lower()}{message[1:]}, got {value!r}"
