"""A mixed-integer linear program in the making, and HiGHS to solve it."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import scipy.sparse

Terms = list[tuple[int, float]]
"""`(variable, coefficient)` of a sum; a variable may occur several times."""


class LinearProgram:
    """Minimises a sum of costs; variables are numbered as they are added."""

    def __init__(self) -> None:
        self._costs: list[float] = []
        self._lows: list[float] = []
        self._highs: list[float] = []
        self._integers: list[int] = []
        self._rows: list[tuple[Terms, float, float]] = []

    @property
    def num_variables(self) -> int:
        return len(self._costs)

    def variable(
        self,
        cost: float = 0.0,
        low: float = 0.0,
        high: float = 1.0,
        *,
        integer: bool = False,
    ) -> int:
        """A new variable in `[low, high]`."""
        self._costs.append(cost)
        self._lows.append(low)
        self._highs.append(high)
        if integer:
            self._integers.append(len(self._costs) - 1)
        return len(self._costs) - 1

    def set_cost(self, variable: int, cost: float) -> None:
        self._costs[variable] = cost

    def at_most(self, terms: Terms, high: float) -> None:
        """Adds `sum of terms <= high`."""
        self._rows.append((terms, -np.inf, high))

    def at_least(self, terms: Terms, low: float) -> None:
        """Adds `sum of terms >= low`."""
        self._rows.append((terms, low, np.inf))

    def equal(self, terms: Terms, value: float) -> None:
        """Adds `sum of terms = value`."""
        self._rows.append((terms, value, value))

    def minimize(
        self,
        *,
        integral: bool,
        time_limit_s: float | None = None,
        node_limit: int | None = None,
        gap: float = 0.0,
    ) -> tuple[float, np.ndarray | None]:
        """A proven lower bound, -inf for none, and the best values found, if any.

        Args:
          integral: False lets integer variables take any value between their limits.
          time_limit_s, node_limit: of the search.
          gap: between bound and best values, relative, at which it may stop.
        """
        if not self._costs:
            return 0.0, np.zeros(0)
        integrality = np.zeros(self.num_variables)
        if integral:
            integrality[self._integers] = 1
        options = {"mip_rel_gap": gap, "time_limit": time_limit_s}
        if integral:
            options["node_limit"] = node_limit
        result = scipy.optimize.milp(
            np.array(self._costs),
            integrality=integrality,
            bounds=scipy.optimize.Bounds(self._lows, self._highs),
            constraints=self._constraints(),
            options={k: v for k, v in options.items() if v is not None},
        )
        bound = result.mip_dual_bound if integral else None
        if bound is None:
            bound = result.fun if result.status == 0 else -np.inf
        return float(bound), result.x

    def _constraints(self) -> scipy.optimize.LinearConstraint:
        lengths = [len(terms) for terms, *_ in self._rows]
        columns = [v for terms, *_ in self._rows for v, _ in terms]
        values = [x for terms, *_ in self._rows for _, x in terms]
        matrix = scipy.sparse.csr_array(
            (values, columns, np.cumsum([0, *lengths])),
            shape=(len(lengths), self.num_variables),
        )
        matrix.sum_duplicates()
        lows = np.array([low for _, low, _ in self._rows])
        highs = np.array([high for *_, high in self._rows])
        return scipy.optimize.LinearConstraint(matrix, lows, highs)
