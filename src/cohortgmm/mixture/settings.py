"""Default length and number of EM runs. A module of its own, since it is read where numpy is not loaded."""

from typing import Any

#: Values of ``max_iter``, ``tol`` and ``n_init`` where they are not given. EM converges more slowly where data are
#: incomplete (noise, missing features, selection, background) or parameters are frozen.
COMPLETE = {"max_iter": 100, "tol": 1e-3, "n_init": 1}
INCOMPLETE = {"max_iter": 2000, "tol": 1e-6, "n_init": 10}


def effective_settings(incomplete: bool, **given: float | None) -> dict[str, Any]:
    """Replace None among ``max_iter``, ``tol`` and ``n_init`` by the default for complete or incomplete data."""
    defaults = INCOMPLETE if incomplete else COMPLETE
    return {name: defaults[name] if value is None else value for name, value in given.items()}
