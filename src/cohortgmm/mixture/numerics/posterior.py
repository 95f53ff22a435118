"""From joint log-densities to responsibilities."""

import numpy as np


def normalize(joint: np.ndarray, background: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Responsibilities and log-densities of cells.

    Parameters
    ----------
    joint
        (K, n) log(weight × density) of every component; overwritten.
    background
        (n,) log(amplitude × density) of the background; None means no background.

    Returns
    -------
    resp : ndarray
        (K, n) responsibilities of the components; the background's responsibility is one minus their sum.
    log_prob : ndarray
        (n,) log-densities of the whole mixture, in nats.
    """
    peak = joint.max(axis=0)
    if background is not None:
        peak = np.maximum(peak, background)
    peak = np.where(np.isneginf(peak), 0.0, peak)  # all densities at the cell are zero
    joint -= peak
    resp = np.exp(joint, out=joint)
    total = resp.sum(axis=0)
    if background is not None:
        total += np.exp(background - peak)
    with np.errstate(divide="ignore"):
        log_prob = peak + np.log(total)
    resp /= np.where(total > 0, total, 1.0)
    return resp, log_prob


def responsibilities(joint: np.ndarray, background: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Responsibilities as from :func:`normalize`, and the sum of the log-densities."""
    resp, log_prob = normalize(joint, background)
    return resp, float(np.sum(log_prob))
