"""The options of a fit, from the section ``gmm:``. Needs no numpy, as the start of a run asks too."""

from typing import TYPE_CHECKING, Any

from cohortgmm.mixture import effective_settings

if TYPE_CHECKING:  # a fit job does not load pydantic
    from cohortgmm.config import GmmConfig


def fit_settings(gmm: "GmmConfig") -> dict[str, Any]:
    """``max_iter``, ``tol`` and ``n_init``: as given, else the mixture's defaults for these data."""
    given = {name: getattr(gmm, name) for name in ("max_iter", "tol", "n_init")}
    return effective_settings(gmm.converges_slowly, **given)


def fit_options(gmm: "GmmConfig") -> dict[str, Any]:
    """What a single fit depends on; :func:`cohortgmm.cohort.fit_arguments.fit_arguments` makes arguments of it.

    The values are numbers, texts, lists and dicts. Of a notebook, functions and the reference stay objects.
    """
    names = ("covariance_type", "eps", "singularity_handling", "init", "split_merge", "cutoff", "reference")
    options = {name: getattr(gmm, name) for name in names} | fit_settings(gmm)
    for name in ("background", "frozen"):
        section = getattr(gmm, name)
        options[name] = None if section is None else section.model_dump()
    options["completeness"] = gmm.completeness and {
        "gates": [gate.model_dump() for gate in gmm.completeness.gates],
        "function": gmm.completeness.function,
    }
    return options | {"noise_at": gmm.noise and gmm.noise.at}
