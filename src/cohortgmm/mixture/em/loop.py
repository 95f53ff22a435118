"""The loop of EM from one start."""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from cohortgmm.errors import DivergedError, FitError
from cohortgmm.mixture.density.parameters import Parameters
from cohortgmm.mixture.em.constraints import Constraints
from cohortgmm.mixture.em.mstep import m_step
from cohortgmm.mixture.em.squarem import Squarem
from cohortgmm.mixture.estep.base import Expectation
from cohortgmm.mixture.estep.moments import Moments

#: A trial, by which several starts are compared, ends after this many iterations or at this tolerance.
_TRIAL_ITER, _TRIAL_TOL = 50, 1e-4

#: A run ends after this many redraws of the quadrature nodes in a row without a gain.
_STALLED = 3

#: A relative fall of the log-likelihood that rounding does not explain; covariances are then too ill-conditioned.
_LOST = 1e-6


@dataclass(frozen=True, eq=False)
class EMResult:
    """The end of a run of EM.

    Attributes
    ----------
    model
        The mixture of the last E-step.
    moments
        What that E-step returned.
    floored
        (K,) components whose covariance is at the floor.
    history
        (n_iter + 1,) mean log-likelihood per cell of the start and after every iteration.
    converged
        Whether the run ended because the last iteration gained less than ``tol``, or because redrawing the quadrature
        nodes brought no gain any more. False also where the log-likelihood fell because digits were lost.
    """

    model: Parameters
    moments: Moments
    floored: np.ndarray
    history: np.ndarray
    converged: bool

    @property
    def log_likelihood(self) -> float:
        """Mean log-likelihood per cell in nats."""
        return _per_cell(self.moments)

    @property
    def n_iter(self) -> int:
        """Number of iterations."""
        return len(self.history) - 1


@dataclass(frozen=True, eq=False)
class _State:
    """A mixture on the way, what the E-step returned for it, and the number of M-steps that led to it."""

    model: Parameters
    moments: Moments
    floored: np.ndarray
    n_iter: int

    @property
    def value(self) -> float:
        """Mean log-likelihood per cell."""
        value = _per_cell(self.moments)
        if not np.isfinite(value):
            raise FitError(f"the log-likelihood became {value} after {self.n_iter} iterations; rescale the data")
        return value


@dataclass(frozen=True, eq=False)
class _Segment:
    """The iterations between two calls of :meth:`EM._begin`.

    Attributes
    ----------
    end
        The last mixture.
    values
        Mean log-likelihood per cell of the first mixture and after every iteration.
    converged
        Whether EM has converged.
    restart_at
        The mixture for which :meth:`EM._begin` must be called again, its floored components and its number of M-steps;
        None at the end of the run.
    """

    end: _State
    values: list[float]
    converged: bool = False
    restart_at: tuple[Parameters, np.ndarray, int] | None = None


def _per_cell(moments: Moments) -> float:
    return float(moments.log_likelihood / moments.n)


@dataclass(frozen=True, eq=False)
class EM:
    """An EM algorithm: an E-step, the constraints of the M-step, and when to stop.

    Attributes
    ----------
    expectation
        The E-step.
    constraints
        Of the M-step.
    max_iter, tol
        See :func:`cohortgmm.fit_mixture`.
    accelerated
        Whether the steps of EM are extrapolated (SQUAREM).
    """

    expectation: Expectation
    constraints: Constraints
    max_iter: int
    tol: float
    accelerated: bool

    def trial(self) -> Self:
        """A shorter and coarser EM, to compare starts."""
        return replace(
            self,
            expectation=self.expectation.coarse(),
            max_iter=min(self.max_iter, _TRIAL_ITER),
            tol=max(self.tol, _TRIAL_TOL),
        )

    def run(self, start: Parameters, before: EMResult | None = None) -> EMResult:
        """Run EM from one start.

        With a completeness function, the quadrature nodes of the unobserved cells (see
        :mod:`cohortgmm.mixture.estep.truncated`) are accurate near the mixture that they were drawn for. They are redrawn
        when a component has moved too far, and at convergence if it has moved a little. After three redraws in a row
        without a gain, the gains of the iterations between them are only integration error; the run then ends with the
        best mixture for which nodes were drawn.

        If covariances are so ill-conditioned that the log-likelihood falls, the best mixture is returned, as not
        converged.

        Parameters
        ----------
        start
            The first mixture.
        before
            An earlier run that ended at this start; its iterations count.

        Raises
        ------
        FitError
            If the log-likelihood is not finite, or a covariance is singular under ``strict`` constraints.
        """
        n_iter_limit = self.max_iter - (0 if before is None else before.n_iter)
        expect, state = self._begin(start, np.zeros(start.n_components, dtype=bool), 0)
        segment = self._run_segment(expect, state, n_iter_limit)
        best, n_stalled, history = state, 0, segment.values
        while segment.restart_at is not None:
            expect, state = self._begin(*segment.restart_at)
            n_stalled = 0 if state.value > best.value + self.tol else n_stalled + 1
            best = best if n_stalled else state
            if n_stalled == _STALLED:
                segment = _Segment(best, [best.value], converged=True)
            else:
                segment = self._run_segment(expect, state, n_iter_limit)
            history = history + segment.values
        if before is not None:
            history = [*before.history[:-1], *history]
        end = segment.end
        return EMResult(end.model, end.moments, end.floored, np.array(history), segment.converged)

    def _begin(self, model: Parameters, floored: np.ndarray, n_iter: int) -> tuple[Expectation, _State]:
        expect = self.expectation.begin(model)
        return expect, _State(model, expect(model), floored, n_iter)

    def _run_segment(self, expect: Expectation, state: _State, n_iter_limit: int) -> _Segment:
        """Iterate until EM converges, the E-step must begin anew, or ``n_iter_limit`` M-steps have been made in all."""
        accelerator = Squarem(state.model, self.constraints) if self.accelerated else None
        values, best = [state.value], state
        while state.n_iter < n_iter_limit:
            model, floored = m_step(state.moments, state.model, self.constraints, suspected=state.floored)
            n_iter = state.n_iter + 1
            if not expect.covers(model):
                return _Segment(state, values, restart_at=(model, floored, n_iter))
            state = self._e_step(
                expect, accelerator, model, floored, n_iter, values[-1], is_last=n_iter == n_iter_limit
            )
            values.append(state.value)
            best = state if state.value >= best.value else best
            # A small gain of plain EM does not show convergence before an extrapolation was tried.
            if values[-1] - values[-2] < self.tol and (accelerator is None or accelerator.has_extrapolated):
                if not expect.is_settled(state.model):
                    # The next segment begins with this mixture, and with its value on the new nodes.
                    return _Segment(state, values[:-1], restart_at=(state.model, floored, n_iter))
                return _without_loss(_Segment(state, values, converged=True), best)
        return _without_loss(_Segment(state, values), best)

    def _e_step(
        self,
        expect: Expectation,
        accelerator: Squarem | None,
        model: Parameters,
        floored: np.ndarray,
        n_iter: int,
        last_value: float,
        *,
        is_last: bool,
    ) -> _State:
        """The state after an M-step, or the extrapolated one if its log-likelihood is higher."""
        if is_last:  # what is reported must be exact
            expect.refresh()
        state = _State(model, expect(model), floored, n_iter)
        if state.moments.is_bound and state.value - last_value < self.tol:
            expect.refresh()  # a lower bound may rise by less than the log-likelihood does
            state = replace(state, moments=expect(model))
        proposed = None if accelerator is None or is_last else accelerator.extrapolate(model)
        if proposed is None:
            return state
        extrapolated = None
        if expect.covers(proposed):
            expect.refresh()  # only exact log-likelihoods can be compared
            with suppress(DivergedError):
                extrapolated = replace(state, model=proposed, moments=expect(proposed))
        if extrapolated is None or not extrapolated.moments.log_likelihood > state.moments.log_likelihood:
            accelerator.judge(None)
            return state
        accelerator.judge(proposed)
        return extrapolated


def _without_loss(segment: _Segment, best: _State) -> _Segment:
    """The segment as it is; or, if digits were lost on the way, the segment ended at its best mixture, not converged."""
    end = segment.end
    if not end.value < best.value - _LOST * max(1.0, abs(best.value)):
        return segment
    end = replace(best, floored=best.floored | end.floored)
    return _Segment(end, [*segment.values[:-1], best.value])
