"""Where buffers are, as one-line attributes for the text that a program came from."""

from __future__ import annotations

from jax_malloc import plan_file
from jax_malloc.mapping import Mapping
from jax_malloc.problem import Problem


def by_definition(problem: Problem, mapping: Mapping) -> dict[str, str]:
    """Where the results of each instruction are over their lives, by its name.

    "slow", or "fast:offset=4096,first=dot.3,last=dot.7" for each stay, joined by ";",
    with ops named as in the plan file. Results of a tuple are joined likewise, each
    after its index.
    """
    lines: dict[str, list[str]] = {}
    for entry in plan_file.encode_mapping(problem, mapping)["buffers"]:
        index = "".join(f"{{{i}}}" for i in entry["index"])
        stays = [
            f"fast:offset={s['offset_bytes']},first={s['first']},last={s['last']}"
            for s in entry["segments"]
        ]
        place = ";".join(stays) or "slow"
        line = f"{index}={place}" if index else place
        lines.setdefault(entry["name"], []).append(line)
    return {name: ";".join(line) for name, line in lines.items()}


def by_op(problem: Problem, mapping: Mapping) -> dict[str, str]:
    """Where each op finds or puts each buffer that it touches, by its name.

    Such as "w=fast:offset=4096;dot.3=slow". Ops that touch nothing are left out.
    """
    offsets = {
        (t, s.buffer_id): s.offset_bytes
        for s in mapping.segments
        for t in range(s.first, s.end)
    }
    lines: dict[str, list[str]] = {}
    for t, b, *_ in problem.program.accesses():
        offset = offsets.get((t, b))
        place = "slow" if offset is None else f"fast:offset={offset}"
        line = f"{problem.program.buffers[b].label}={place}"
        lines.setdefault(problem.program.ops[t].name, []).append(line)
    return {name: ";".join(line) for name, line in lines.items()}
