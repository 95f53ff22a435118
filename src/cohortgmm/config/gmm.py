"""The section ``gmm:`` of the configuration, which is also the arguments of :func:`cohortgmm.fit_gmm`."""

import operator
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from cohortgmm.config.base import Component, Conflict, Function, Mixture, Number, Section
from cohortgmm.display import format_repr
from cohortgmm.errors import ConfigError

#: Candidates for k if none are given.
DEFAULT_K = tuple(range(1, 11))


def default_gmm_key(use_rep: str | None) -> str:
    """Key of ``uns`` under which ggml_ot looks for the mixtures of an embedding."""
    return f"gmm_{use_rep or 'X'}"


def function_name(function: Any) -> str:
    """Name of a function for the record of a result, ``module:function``; a function given by name keeps this name."""
    if isinstance(function, str):
        return function
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", None) or "notebook"
    return f"{module}:{name}" if name.isidentifier() else "notebook:function"


class NoiseConfig(Section):
    """Measurement noise of the cells: the fitted mixture is that of the cells without this noise."""

    obsm: str | None = Field(
        None,
        description="Key of `obsm`: variances (cells, features), or covariances (cells, features, features), also "
        "flattened to (cells, features · features). An infinite variance marks a missing feature. The variance of a "
        "feature that is NaN in a cell is not used.",
    )
    layer: str | None = Field(None, description="Key of `layers`: variances of X, for `use_rep: null`.")
    at: Function = Field(
        None,
        description="With `completeness`: function for the noise of unobserved cells, `file.py:function` or "
        "`module:function`. It gets cells without noise (m, features) and returns variances or covariances. null: the "
        "noise of randomly drawn cells.",
    )

    def conflicts(self) -> list[Conflict]:
        if (self.obsm is None) != (self.layer is None):
            return []
        return [(("obsm", "layer"), "needs one of obsm and layer")]

    def record(self) -> dict[str, str]:
        """The given keys as texts, for the record in ``uns``."""
        given = {"obsm": self.obsm, "layer": self.layer, "at": self.at and function_name(self.at)}
        return {key: value for key, value in given.items() if value is not None}


class GivenNoise(NoiseConfig):
    """Measurement noise that a notebook gives as arrays."""

    values: Any

    def conflicts(self) -> list[Conflict]:
        return []

    def record(self) -> dict[str, str]:
        return {"obsm": "an array", **super().record()}


class GateConfig(Section):
    """A condition for a cell to be in the data. It names features (`PC1` in `X_pca`, genes in X)."""

    inside: dict[str, list[Number | None]] | None = Field(
        None,
        description="Box: lower and upper bound by feature, null for no bound: `{PC1: [-10, 5], PC2: [0, null]}`. Cells "
        "outside are not in the data.",
    )
    outside: dict[str, list[Number | None]] | None = Field(
        None, description="Hole: cells within all these bounds are not in the data."
    )
    half_space: dict[str, Number] | None = Field(
        None, description="Factor by feature. The sum of factor × feature is at least `at_least` for cells in the data."
    )
    at_least: Number = Field(0.0, description="See `half_space`.")

    @field_validator("inside", "outside")
    @classmethod
    def _check_bounds(cls, value: dict[str, list[float | None]] | None) -> dict[str, list[float | None]] | None:
        for name, bounds in (value or {}).items():
            if len(bounds) != 2 or bounds == [None, None]:
                raise ValueError(f"{name} needs a lower and an upper bound, one of which may be null, got {bounds!r}")
            low, high = bounds
            if low is not None and high is not None and not low < high:
                raise ValueError(f"{name} needs a lower bound below the upper one, got {bounds!r}")
        return value

    def conflicts(self) -> list[Conflict]:
        if sum(bool(kind) for kind in (self.inside, self.outside, self.half_space)) == 1:
            return []
        return [(("inside", "outside", "half_space"), "a gate needs one of inside, outside and half_space")]


class CompletenessConfig(Section):
    """Selection of the cells in the data: the fitted mixture is that of all cells, observed or not."""

    gates: list[GateConfig] = Field([], description="Conditions. Every cell in the data fulfils all of them.")
    function: Function = Field(
        None,
        description="`file.py:function` or `module:function`. It gets measured cells (m, features) and returns "
        "the probability, in [0, 1], that such a cell is in the data.",
    )

    def conflicts(self) -> list[Conflict]:
        found = [
            (tuple(f"gates.{i}.{key}" for key in keys), f"gates.{i}: {text}")
            for i, gate in enumerate(self.gates)
            for keys, text in gate.conflicts()
        ]
        return found if self.gates or self.function else [(("gates", "function"), "needs gates or a function")]


class BackgroundConfig(Section):
    """Background: cells or debris that belong to no component, uniformly distributed over a box."""

    lower: Number | list[Number] | None = Field(
        None,
        description="Lower corner, one number for all features or one for each; null: the patient's smallest values.",
    )
    upper: Number | list[Number] | None = Field(None, description="Upper corner; null: the patient's largest values.")
    amp: Number = Field(
        0.1, ge=0, le=1, description="Share of all cells that is background: the initial value or the fixed value."
    )
    amp_min: Number = Field(0.0, ge=0, le=1, description="Smallest share.")
    amp_max: Number = Field(1.0, ge=0, le=1, description="Largest share.")
    adjust_amp: bool = Field(True, description="true: the share is fitted. false: it stays at `amp`.")

    def conflicts(self) -> list[Conflict]:
        found: list[Conflict] = []
        if not self.amp_min <= self.amp <= self.amp_max:
            found.append((("amp", "amp_min", "amp_max"), "needs amp_min <= amp <= amp_max"))
        corners = [corner if isinstance(corner, list) else [corner] for corner in (self.lower, self.upper)]
        lower, upper = (corner * max(map(len, corners)) if len(corner) == 1 else corner for corner in corners)
        lengths = [len(corner) for corner in (self.lower, self.upper) if isinstance(corner, list)]
        if len(set(lengths)) > 1:
            found.append(
                (("lower", "upper"), f"needs as many numbers in lower as in upper, got {lengths[0]} and {lengths[1]}")
            )
        elif not all(low is None or high is None or low < high for low, high in zip(lower, upper, strict=False)):
            found.append((("lower", "upper"), "needs lower below upper in every feature"))
        return found


class FrozenConfig(Section):
    """Parameters of the reference that are not fitted, by index of the component (from 0) or `all`."""

    amp: list[Component] | Literal["all"] = Field([], description="Components that keep their weights.")
    mean: list[Component] | Literal["all"] = Field([], description="Components that keep their means.")
    covar: list[Component] | Literal["all"] = Field([], description="Components that keep their covariances.")


class GmmConfig(Section):
    """How the mixtures are fitted: the arguments of `cohortgmm.fit_gmm`."""

    component_sharing: Literal["sample_specific", "global", "auto"] = Field(
        "sample_specific",
        description="`sample_specific`: one independent mixture per patient. `global`: one mixture over all cells; each "
        "patient has its own weights. These are the mean responsibilities of its cells or, with `noise`, `missing`, "
        "`completeness` or `background`, fitted to its cells by EM. `auto`: `sample_specific` for AnnData and in the "
        "pipeline, `global` for a mapping of arrays.",
    )
    k_comps: int | list[int] | None = Field(
        None,
        description="Number of components. An integer, or a list of one, fixes it: all cells are fitted and nothing is "
        "selected. A longer list gives the candidates; a patient skips those for which it has fewer than two training "
        "cells per component. null: candidates 1 to 10; a patient skips those for which it has fewer than ten training "
        "cells per component (or features + 1, if that is more and the covariances are full). If a patient has too few "
        "cells for a fixed k, or for the smallest k of a list, `on_small_patient` applies.",
    )
    k_selection_metric: Literal["aic", "bic", "heldout_nll"] = Field(
        "aic", description="Criterion that chooses k. The tables of scores always contain all three."
    )
    refit: Literal["none", "full"] = Field(
        "none",
        description="`none`: keep the mixture fitted on the training cells. `full`: fit the chosen k once more on all "
        "cells of the patient.",
    )
    covariance_type: Literal["full", "diag"] = Field(
        "full", description="Full covariances, or diagonal ones: variances of the features only."
    )
    train_size: Number = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a patient's cells used to fit the candidates; the rest is held out. With 1, no cells are "
        "held out, and `k_selection_metric` must be `aic` or `bic`.",
    )
    max_iter: int | None = Field(
        None,
        ge=1,
        description="Largest number of EM iterations of a fit. null: 100; with `noise`, `missing`, `completeness`, "
        "`background` or `reference` 2000.",
    )
    tol: Number | None = Field(
        None,
        ge=0,
        description="A fit has converged when an iteration raises the mean log-likelihood per cell by less than this "
        "(nats). null: 0.001; with `noise`, `missing`, `completeness`, `background` or `reference`, where EM converges "
        "slowly, 1e-6.",
    )
    n_init: int | None = Field(
        None,
        ge=1,
        description="Starts per fit; the one with the highest final likelihood is kept. null: 1; with `noise`, "
        "`missing`, `completeness` or `background` 10.",
    )
    eps: Number = Field(1e-4, gt=0, description="Floor: smallest allowed eigenvalue of a covariance.")
    singularity_handling: Literal["guarded", "robust", "strict"] = Field(
        "guarded",
        description="What happens to an eigenvalue below the floor. `guarded`: it is raised to `eps`. `robust`: it is "
        "raised to 1 % of the mean variance of the features. `strict`: the fit stops with an error that names patient, "
        "k and component.",
    )
    init: Literal["kmeans", "kmeans++", "random", "minmax", "none"] = Field(
        "kmeans",
        description="Starting values. `kmeans`: clusters of k-means. `kmeans++`: clusters around its seeds. `random`: "
        "randomly drawn cells as means. `minmax`: means drawn uniformly from the bounding box of the cells. `none`: the "
        "mixture in `reference`. With `reference`, every fit starts from that mixture.",
    )
    split_merge: int = Field(
        0,
        ge=0,
        description="Rounds of split-and-merge moves after every start. A move merges two similar components and splits "
        "another one, and is kept if the likelihood is higher in the end. Finds better optima for about seven times the "
        "work.",
    )
    noise: NoiseConfig | None = Field(None, description="Measurement noise of the cells; keys below.")
    missing: bool = Field(
        False,
        description="true: NaN is a missing feature, which the likelihood integrates over. false: NaN is an error.",
    )
    completeness: CompletenessConfig | None = Field(None, description="Selection of the cells in the data; keys below.")
    background: BackgroundConfig | None = Field(
        None, description="A uniform background; keys below (`{}`: all keys at their defaults)."
    )
    cutoff: Number | None = Field(
        None,
        gt=0,
        description="Leave out components farther from a cell than this many standard deviations; null: no cutoff.",
    )
    reference: Mixture = Field(
        None,
        description="A mixture (`.npz`) from which all fits start; they have the same number of components. Without "
        "`frozen`, its means and covariances are kept: patients are mapped onto it, and only their weights (and the "
        "background) are fitted. It must not be a result of this run; `python -m cohortgmm keep DIR` copies the "
        "mixtures of a run to `DIR/models`.",
    )
    frozen: FrozenConfig | None = Field(None, description="Parameters of `reference` that are not fitted; keys below.")
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
            raise ValueError(f"must be an integer, a list of integers or null, got {format_repr(value)}")
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
                raise ValueError(f"must hold integers of at least 1, got {format_repr(k)}")
            ks.append(number)
        return sorted(set(ks)) if several else ks[0]

    @field_validator("gmm_key")
    @classmethod
    def _check_key(cls, value: str | None) -> str | None:
        if value == ".":
            raise ValueError("must not be '.', which stands for the whole of `uns`")
        if value is not None and "\0" in value:
            raise ValueError(f"must not have a NUL character, which no .h5ad can hold, got {value!r}")
        return value

    def conflicts(self) -> list[Conflict]:
        found = []
        for name in ("noise", "completeness", "background"):
            section = getattr(self, name)
            for keys, text in section.conflicts() if section is not None else ():
                found.append((tuple(f"{name}.{key}" for key in keys), f"{name}: {text}"))
        if self.train_size == 1 and self.k_selection_metric == "heldout_nll" and self.fixed_k is None:
            message = (
                "train_size 1 holds no cells out, which k_selection_metric heldout_nll needs: lower train_size or "
                "choose aic or bic"
            )
            found.append((("train_size", "k_selection_metric", "k_comps"), message))
        if self.reference is None and (self.frozen is not None or self.init == "none"):
            key = "frozen" if self.frozen is not None else "init"
            found.append((("reference", key), f"{key} needs a mixture in reference, which is not given"))
        if self.reference is not None and self.split_merge:
            found.append((("reference", "split_merge"), "split_merge must be 0: it moves components of reference"))
        if self.noise is not None and self.noise.at is not None and self.completeness is None:
            found.append((("noise.at", "completeness"), "noise.at needs completeness, which is not given"))
        return found

    @property
    def fixed_k(self) -> int | None:
        """The number of components if there is nothing to select, else None."""
        return self.candidates[0] if len(self.candidates) == 1 else None

    @property
    def candidates(self) -> tuple[int, ...]:
        """All k that are fitted."""
        if self.k_comps is None:
            return DEFAULT_K
        return (self.k_comps,) if isinstance(self.k_comps, int) else tuple(self.k_comps)

    @property
    def effective_train_size(self) -> float:
        """``train_size``, or 1 with a fixed k: all cells are fitted if there is nothing to select."""
        return 1.0 if self.fixed_k is not None else self.train_size

    @property
    def has_incomplete_data(self) -> bool:
        """Whether the data are incomplete: noise, missing features, selection or background."""
        return self.missing or any((self.noise, self.completeness, self.background))

    @property
    def converges_slowly(self) -> bool:
        """Whether EM needs many iterations: with incomplete data, or with a reference."""
        return self.has_incomplete_data or self.reference is not None

    def for_reference(self, n_components: int, covariance_type: str, source: str) -> "GmmConfig":
        """A copy with the number of components of the reference.

        Raises
        ------
        ConfigError
            If this section demands another number of components or another type of covariance.
        """
        if self.k_comps is not None and self.candidates != (n_components,):
            raise ConfigError(f"{source}: gmm.k_comps: the reference has {n_components} components: leave k_comps out")
        if self.covariance_type != covariance_type:
            raise ConfigError(
                f"{source}: gmm.covariance_type is {self.covariance_type}, that of the reference {covariance_type}"
            )
        return self.model_copy(update={"k_comps": n_components})

    @property
    def files(self) -> dict[str, str]:
        """Files that fits depend on, by dotted key."""
        named = {"gmm.reference": self.reference}
        for key, name in (
            ("gmm.noise.at", self.noise and self.noise.at),
            ("gmm.completeness.function", self.completeness and self.completeness.function),
        ):
            path = (name or "").rpartition(":")[0]
            named[key] = path if path.endswith(".py") else None
        return {key: path for key, path in named.items() if path}

    def with_files(self, found: Mapping[str, str]) -> "GmmConfig":
        """A copy with other paths for the files, given by the keys of :attr:`files`."""
        update: dict[str, Any] = {}
        for key, path in found.items():
            _, *names = key.split(".")
            if len(names) == 1:
                update[names[0]] = path
                continue
            section = getattr(self, names[0])
            function = getattr(section, names[1]).rpartition(":")[2]
            update[names[0]] = section.model_copy(update={names[1]: f"{path}:{function}"})
        return self.model_copy(update=update)
