"""Ask, compile, read what came out, learn, ask again; keep the best.

The compiler decides greedily and exactly in the order that it is given, so what it will
make of a request is simulated (`order_search`); what ops take then is not known before
it is compiled, and is learned (`op_times`). Each round asks for what is best by what is
known so far.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from frontends import hlo
from hwmodel.accelerator import Accelerator
from jax_malloc import planner
from jax_malloc.solvers.xla_msa.options import LIBTPU
from jax_malloc.steering import order_search, trial
from jax_malloc.steering import request as request_lib
from jax_malloc.steering.op_times import OpTimes
from jax_malloc.steering.order_search import Expected, Surrogate
from jax_malloc.steering.request import Request
from jax_malloc.steering.trial import Trial

# `compile(options of each) -> text or the error of each`
Compile = Callable[[Sequence[Mapping[str, str]]], Sequence[str | Exception]]
# Compilations at a time; each round learns from the one before.
_BATCH = 2
# Simulations per request.
_STEPS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """All that was compiled.

    slow_text: without memory space assignment.
    default: without hints.
    trials: with hints, in order; refused ones are missing.
    refusals: what the compiler said to those.
    """

    slow_text: str
    default: Trial
    trials: tuple[Trial, ...]
    refusals: tuple[str, ...]

    @property
    def best(self) -> Trial:
        """The fastest, or the default.

        It must be faster than the default when each is timed by the estimates in its
        own text, and when both are timed by the same ones, in the mean over those of
        either text.
        """
        default = self.default
        fair = [
            t
            for t in self.trials
            if t.latency_s < default.latency_s
            and t.latency_under(default.problem) * t.latency_s
            <= default.latency_s * default.latency_under(t.problem)
            and t.same_work(default)
        ]
        return min(fair, key=lambda t: t.latency_s, default=default)


def run(
    compile: Compile,
    msa_off: Mapping[str, str],
    accelerator: Accelerator,
    *,
    compiles: int,
    seed: int,
    search_s: float,
    name: str = "",
) -> History:
    """Steers the compiler.

    Args:
      compile: the compiler.
      msa_off: options that switch memory space assignment off.
      accelerator: what it compiles for.
      compiles: how often it may be asked, the default and the one without memory space
        assignment included.
      seed: of the search.
      search_s: seconds to search for what to ask, per round.
      name: of the program.
    Raises:
      Exception: what the compiler raised for the function without hints.
    """
    slow_text, default_text = _required(compile([msa_off, {}]))
    slow = hlo.from_text(slow_text, name=name, where="the text without hints")
    default = trial.read(slow, default_text, accelerator)
    asker = _Asker(default, search_s, seed)
    trials: list[Trial] = []
    refusals: list[str] = []
    left = compiles - 2
    while left > 0:
        asked = asker.next(trials, min(_BATCH, left))
        if not asked:
            break
        left -= len(asked)
        options = [x.request.compiler_options(slow) for x in asked]
        for expected, text in zip(asked, compile(options), strict=True):
            if isinstance(text, Exception):
                refusals.append(str(text))
                continue
            found = trial.read(slow, text, accelerator, expected=expected)
            trials.append(found)
            asker.learn(expected.request, found)
    return History(
        slow_text=slow_text,
        default=default,
        trials=tuple(trials),
        refusals=tuple(refusals),
    )


class _Asker:
    """What to ask next, by all that was compiled so far."""

    def __init__(self, default: Trial, search_s: float, seed: int) -> None:
        problem = default.problem
        self._search_s = search_s
        self._rng, self._guesses = random.Random(seed), np.random.default_rng(seed)
        self._times = OpTimes(problem)
        self._surrogate = Surrogate(problem, LIBTPU)
        self._known: set[bytes] = set()
        self._found: list[Request] = []
        self.learn(Request(), default)
        plan = planner.solve(
            problem.program, problem.accelerator, seed=seed, time_limit_s=search_s
        )
        self._starts = [Request(), *request_lib.of_mapping(problem, plan.mapping)]

    def learn(self, request: Request, found: Trial) -> None:
        """Takes in what the compiler made of a request."""
        program = found.problem.program
        obtained = self._surrogate.obtained(request, program)
        self._times.observe(program)
        self._surrogate.learn(obtained)
        self._known.add(obtained.key)

    def next(self, trials: Sequence[Trial], count: int) -> list[Expected]:
        """Up to `count` requests that should tell most.

        The first is the best by what is expected, from the best so far on; the others
        by guesses that agree with all that was observed, from anew.
        """
        best = [t.expected.request for t in sorted(trials, key=lambda t: t.latency_s)]
        asked: list[Expected] = []
        for k in range(count):
            times = self._times if k == 0 else self._times.sampled(self._guesses)
            found = order_search.search(
                self._surrogate,
                functools.partial(_latency_s, times),
                [*best[:2], *self._found, *self._starts] if k == 0 else self._starts,
                steps=_STEPS,
                deadline_s=time.monotonic() + self._search_s / count,
                rng=self._rng,
                known=self._known,
            )
            if found is not None:
                self._found.append(found.request)
                self._known.add(found.key)
                expected_s = _latency_s(self._times, found)
                asked.append(dataclasses.replace(found, latency_s=expected_s))
        return asked


def _latency_s(times: OpTimes, expected: Expected) -> float:
    return times.timeline(expected.fast, expected.all_copies).latency_s


def _required(texts: Sequence[str | Exception]) -> Sequence[str]:
    for text in texts:
        if isinstance(text, Exception):
            raise text
    return texts
