"""Evolutionary search over action strings of the game: a baseline for agents.

    population    strings of actions, one for each access
    select        the best of a few drawn ones is a parent (tournament)
    cross over    at an access: the game so far of one parent, the rest of another
    mutate        single accesses, and all accesses of a buffer
    replace       parents and children together, the best stay

An action that is not possible falls back, so every child is a whole valid game. It
knows no more of the game than what it saves.

Source: a plain genetic algorithm, Holland, "Adaptation in Natural and Artificial
Systems", 1975, with (mu + lambda) replacement; its figures are usual ones and were not
swept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jax_malloc import game
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem
from jax_malloc.solvers.games import is_over, rounds
from jax_malloc.solvers.strings import Strings

POPULATION = 64  # parents; and as many children in a generation
# Generations without a deadline: a number, so that a seed gives the same plan.
_MIN_GENERATIONS, _MAX_GENERATIONS = 10, 200
_DECISIONS = 5_000_000  # in all games
_TOURNAMENT = 3
_CROSSED = 0.7  # share of children of two parents
# Accesses that one child changes, as a share of all at most, drawn in logarithms from
# one access; and how often a whole buffer changes instead.
_MOST_CHANGED = 0.05
_WHOLE_BUFFER = 0.5
# Parameter of the Dirichlet distribution that each first string draws its shares of the
# actions from: below 1, most strings prefer one.
_EVENNESS = 0.7


def solve(
    problem: Problem,
    *,
    seed: int = 0,
    deadline_s: float | None = None,
    generations: int | None = None,
) -> Mapping:
    """The best game of all generations; all in slow memory if none saves anything.

    Args:
      problem, seed: as for every solver.
      deadline_s: absolute; another generation begins if it should end by then. The
        first cannot be cut short.
      generations: without a deadline; None chooses by the program's length.
    """
    strings = Strings(problem)
    if is_over(deadline_s) or not strings.num_accesses:
        return Mapping()
    if generations is None:
        generations = _DECISIONS // (POPULATION * strings.num_accesses)
        generations = min(max(generations, _MIN_GENERATIONS), _MAX_GENERATIONS)
    rng = np.random.default_rng(seed)
    population = np.empty((0, strings.num_accesses), np.int32)
    fitness = np.empty(0)
    for i in rounds(generations, deadline_s):
        if i == 0:
            bred = _first_strings(rng, strings.num_accesses)
        else:
            bred = _children(rng, population, fitness, strings.buffers)
        population = np.concatenate([population, bred])
        fitness = np.concatenate([fitness, strings.saved(bred)])
        fittest = np.argsort(-fitness, kind="stable")[:POPULATION]
        population, fitness = population[fittest], fitness[fittest]
    return strings.mapping(population[0]) if fitness[0] > 0 else Mapping()


def _first_strings(rng: np.random.Generator, length: int) -> NDArray[np.int32]:
    """`[POPULATION, length]` random strings: one of each single action, the others with
    shares of their own."""
    strings = np.empty((POPULATION, length), np.int32)
    for i in range(POPULATION):
        if i < game.NUM_ACTIONS:
            strings[i] = i
        else:
            shares = rng.dirichlet([_EVENNESS] * game.NUM_ACTIONS)
            strings[i] = rng.choice(game.NUM_ACTIONS, size=length, p=shares)
    return strings


def _children(
    rng: np.random.Generator,
    parents: NDArray[np.int32],
    fitness: NDArray[np.float64],
    buffers: NDArray[np.int32],
) -> NDArray[np.int32]:
    """As many strings, bred from these; `buffers` says whose access each action is."""
    length = parents.shape[1]

    def selected() -> NDArray[np.int32]:
        drawn = rng.integers(len(parents), size=_TOURNAMENT)
        return parents[drawn[np.argmax(fitness[drawn])]]

    children = np.empty_like(parents)
    for child in children:
        child[:] = selected()
        if rng.random() < _CROSSED:
            at = rng.integers(length)
            child[at:] = selected()[at:]
        most = max(1.0, _MOST_CHANGED * length)
        changes = round(np.exp(rng.uniform(0, np.log(most))))
        for access in rng.integers(length, size=changes):
            action = rng.integers(game.NUM_ACTIONS)
            if rng.random() < _WHOLE_BUFFER:
                child[buffers == buffers[access]] = action
            else:
                child[access] = action
    return children
