"""The loop of EM from one start."""

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from cohortgmm.errors import DivergedError, FitError
from cohortgmm.mixture.em.constraints import Constraints
from cohortgmm.mixture.em.mstep import Moments, maximize
from cohortgmm.mixture.em.split_merge import move, moves
from cohortgmm.mixture.em.squarem import Squarem
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.model import GaussianMixture
from cohortgmm.mixture.observations.completeness import TruncatedExpectation
from cohortgmm.mixture.observations.measurements import Measurements
from cohortgmm.mixture.result import MixtureFit

#: Of several starts where part of the cells is hidden, each goes on for so long before the best is chosen.
_TRIAL_ITER, _TRIAL_TOL = 50, 1e-4

#: Times that an E-step may begin again without a gain.
_STALLED = 3

#: A fall of the log-likelihood, relative to it, by which digits must have been lost.
_LOST = 1e-6

#: Nodes of the unseen part in such a trial.
_TRIAL_NODES = 1 << 12


@dataclass(frozen=True, eq=False)
class _Position:
    """A mixture that EM has reached, and what the E-step says of the cells there."""

    model: GaussianMixture
    moments: Moments
    floored: np.ndarray
    n_iter: int

    @property
    def value(self) -> float:
        """Mean log-likelihood per cell."""
        value = float(self.moments.log_likelihood / self.moments.n)
        if not np.isfinite(value):
            raise FitError(f"the log-likelihood became {value} after {self.n_iter} iterations; rescale the data")
        return value


@dataclass(frozen=True, eq=False)
class Climb:
    """How EM climbs.

    Attributes
    ----------
    expectation
        The E-step.
    constraints
        Of the M-step.
    max_iter, tol
        See :func:`cohortgmm.fit_mixture`.
    accelerated
        Whether EM's steps are extrapolated.
    """

    expectation: Expectation
    constraints: Constraints
    max_iter: int
    tol: float
    accelerated: bool

    def trial(self) -> "Climb":
        """A short climb, to compare starts."""
        expectation = self.expectation
        if isinstance(expectation, TruncatedExpectation):
            expectation = expectation.with_nodes(_TRIAL_NODES)
        return replace(
            self, expectation=expectation, max_iter=min(self.max_iter, _TRIAL_ITER), tol=max(self.tol, _TRIAL_TOL)
        )

    def run(self, start: GaussianMixture, before: MixtureFit | None = None) -> MixtureFit:
        """EM from one start; the model returned is the one its last log-likelihood was computed with.

        Where the E-step holds only near the mixture it began with (the nodes of an unseen part), it begins again when
        EM has left it, and once more in the end. When that has brought nothing for some times, what EM gains in between
        is the error of the nodes, and the run ends with the best mixture that it began again from.

        Where covariances are so ill-conditioned that EM falls, the best mixture is returned, as not converged.

        ``before`` is an earlier run that ended at this start.
        """
        expect, ahead, at = self._begin(start, np.zeros(start.n_components, dtype=bool), 0)
        history, best, top, n_stalled, converged = [at.value], at, at, 0, False
        done = 0 if before is None else before.n_iter
        for n_iter in range(1, self.max_iter - done + 1):
            model, floored = maximize(at.moments, at.model, self.constraints, suspected=at.floored)
            if expect.covers(model):
                last = n_iter + done == self.max_iter
                at = self._look(expect, ahead, _Position(model, None, floored, n_iter), history[-1], last)
                history.append(at.value)
                top = at if at.value >= top.value else top
                still = history[-1] - history[-2] < self.tol and (ahead is None or ahead.has_leapt)
                converged = still and expect.is_settled(at.model)
                if converged:
                    break
                if not still:
                    continue
                model = at.model
                history.pop()
            expect, ahead, at = self._begin(model, floored, n_iter)
            top = at
            history.append(at.value)
            n_stalled = 0 if at.value > best.value + self.tol else n_stalled + 1
            best = best if n_stalled else at
            converged = n_stalled == _STALLED
            if converged:
                at, history[-1] = best, best.value
                break
        if at.value < top.value - _LOST * max(1.0, abs(top.value)):  # digits were lost on the way
            at, history[-1] = replace(top, floored=top.floored | at.floored), top.value
            converged = False
        return _result(at, np.array(history), converged, before)

    def _begin(
        self, model: GaussianMixture, floored: np.ndarray, n_iter: int
    ) -> tuple[Expectation, Squarem | None, _Position]:
        expect = self.expectation.begin(model)
        ahead = Squarem(model, self.constraints) if self.accelerated else None
        return expect, ahead, _Position(model, expect(model), floored, n_iter)

    def _look(self, expect: Expectation, ahead: Squarem | None, at: _Position, before: float, last: bool) -> _Position:
        """The E-step after an M-step, and where EM seems to lead from there if that is higher still."""
        at = replace(at, moments=expect(at.model, exact=last))
        if at.moments.is_bound and at.value - before < self.tol:
            at = replace(at, moments=expect(at.model))
        candidate = None if ahead is None or last else ahead.extrapolate(at.model)
        if candidate is None:
            return at
        there = None
        if expect.covers(candidate):
            with suppress(DivergedError):
                there = replace(at, model=candidate, moments=expect(candidate))
        better = there is not None and there.moments.log_likelihood > at.moments.log_likelihood
        ahead.judge(candidate if better else None)
        return there if better else at

    def move(self, cells: Measurements, fit: MixtureFit, n_rounds: int) -> MixtureFit:
        """Rounds of split-and-merge moves from a fit."""
        for _ in range(n_rounds if fit.model.n_components > 2 else 0):
            for i, j, k in moves(cells, fit.model):
                try:
                    moved = self.run(move(fit.model, (i, j), k, self.constraints.floor))
                except FitError:
                    continue
                if moved.log_likelihood > fit.log_likelihood:
                    fit = moved
                    break
            else:
                break
        return fit


def _result(at: _Position, history: np.ndarray, converged: bool, before: MixtureFit | None) -> MixtureFit:
    n_iter = len(history) - 1
    if before is not None:
        n_iter, history = n_iter + before.n_iter, np.concatenate([before.history[:-1], history])
    n, n_unobserved = at.moments.n, at.moments.n_unobserved
    return MixtureFit(
        at.model, at.value, n_iter, bool(converged), history, at.floored, n_unobserved, n / (n + n_unobserved)
    )
