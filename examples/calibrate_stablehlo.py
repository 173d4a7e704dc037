"""Compares the StableHLO path's predicted latencies with those of the TPU's compiler.

Each program of the model zoo is read twice: as StableHLO, timed by the roofline, and
compiled by libtpu, timed by the compiler's own cycle estimates, which count as the
truth. All-in-HBM latencies and those of a greedy plan are put side by side in a
Markdown table. No TPU is needed; compiled texts are kept on disk.

python examples/calibrate_stablehlo.py         # the shipped constants
python examples/calibrate_stablehlo.py --fit   # new ones, from the families named here
"""

import dataclasses
import importlib.metadata
import shlex
import sys
from collections.abc import Sequence

import numpy as np
from absl import app, flags, logging
from scipy import optimize, stats

import jax_malloc
import model_zoo
from accelerator_flag import AcceleratorParser, NameSerializer
from frontends import stablehlo, tpu
from frontends.program import Program
from frontends.stablehlo_layouts import FEW_IMAGES_NOTE
from frontends.tiling import Tiling
from hwmodel import latency as latency_lib
from hwmodel.accelerator import Accelerator
from jax_malloc import problem as problem_lib

# Constants are fitted on these families only: dense, mixed and convolutional, forward
# and training. All others are reported and never fitted.
FIT_FAMILIES = ("mlp", "mixer", "resnet")
PROGRAMS = (
    "mlp/small",
    "mlp/wide",
    "mlp/train",
    "mlp/train_wide",
    "mixer/small",
    "mixer/train",
    "mixer/train_wide",
    "resnet/small",
    "resnet/train",
    "resnet/train_small",
    "autoencoder/small",
    "autoencoder/train",
    "encoder_decoder/small",
    "encoder_decoder/train",
    "encoder_decoder/train_small",
    "lstm_scan/small",
    "lstm_scan/train",
    "lstm_scan/wide",
    "transformer_decoder/small",
    "transformer_decoder/train",
    "transformer_decoder/train_small",
    "transformer_encoder/small",
    "transformer_encoder/train",
    "transformer_encoder/train_small",
    "unet/small",
    "unet/train",
)
# The shares that are fitted. `vector`, left free, ends at 1; `slow` has a source.
_FITTED = ("matmul", "transcendental", "fast")
_LEAST_SHARE = 0.02
_PASSES = (0.0, 20.0)  # of images through memory, between which they are sought
# Errors of log latency beyond this much count less than quadratically.
_SOFT_ERROR = 0.1

_ACCELERATOR = flags.DEFINE(
    AcceleratorParser(),
    "accelerator",
    "tpu_v5e",
    "A TPU preset that libtpu compiles for.",
    serializer=NameSerializer(),
)
_PROGRAMS = flags.DEFINE_list("programs", list(PROGRAMS), "Of the model zoo.")
flags.register_validator(
    "programs",
    lambda names: bool(names) and set(names) <= set(model_zoo.ZOO),
    "choose from model_zoo.ZOO",
)
_FIT = flags.DEFINE_bool("fit", False, "Fit the efficiencies first, and use them.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Compiled texts; None, the usual.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One program of the zoo, as the two paths see it."""

    name: str
    from_stablehlo: Program
    from_compiler: Program

    @property
    def is_fitted(self) -> bool:
        return model_zoo.family(self.name) in FIT_FAMILIES

    @property
    def is_over_few_images(self) -> bool:
        """Whether the compiler moves space to batch around its convolutions."""
        return FEW_IMAGES_NOTE in self.from_stablehlo.notes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Predicted seconds per call: all in HBM, under a greedy plan, all in fast memory.

    The last is a bound; such a mapping need not exist.
    """

    all_slow_s: float
    planned_s: float
    all_fast_s: float


def lowered(name: str, tiling: Tiling | None) -> Program:
    """A program of the zoo by the StableHLO path."""
    f, args = model_zoo.ZOO[name]()
    return stablehlo.from_jax(f, *args, name=name, tiling=tiling)


def read(name: str, accelerator: Accelerator, cache_dir: str | None) -> Case:
    """A program of the zoo by both paths; the compiler takes seconds to minutes."""
    f, args = model_zoo.ZOO[name]()
    return Case(
        name=name,
        from_stablehlo=lowered(name, problem_lib.tiling_of(accelerator)),
        from_compiler=tpu.compile(
            f, *args, topology=accelerator.name, cache_dir=cache_dir, name=name
        ),
    )


def bounds_s(program: Program, accelerator: Accelerator) -> tuple[float, float]:
    """Latency all in HBM, and all in fast memory."""
    problem = problem_lib.build(program, accelerator)
    fast_s = latency_lib.op_latency_s(problem.latency, np.zeros(len(program.ops)))
    return problem.all_slow_latency_s, float(fast_s.sum())


def predict(program: Program, accelerator: Accelerator) -> Latency:
    all_slow_s, all_fast_s = bounds_s(program, accelerator)
    plan = jax_malloc.solve(program, accelerator, solver="greedy")
    return Latency(
        all_slow_s=all_slow_s, planned_s=plan.latency_s, all_fast_s=all_fast_s
    )


def fit(cases: Sequence[Case], accelerator: Accelerator) -> Accelerator:
    """The accelerator with the shares that bring both paths closest together.

    Least are the soft squares of the differences in log latency, all in HBM and all in
    fast memory, which plans lie between.
    """
    truth = np.log([bounds_s(case.from_compiler, accelerator) for case in cases])

    def with_shares(log_shares: np.ndarray) -> Accelerator:
        shares = np.exp(log_shares).tolist()
        names = [f"efficiency_{name}" for name in _FITTED]
        return accelerator.replace(**dict(zip(names, shares, strict=True)))

    def errors(log_shares: np.ndarray) -> np.ndarray:
        machine = with_shares(log_shares)
        found = [bounds_s(case.from_stablehlo, machine) for case in cases]
        return (np.log(found) - truth).ravel()

    result = optimize.least_squares(
        errors,
        np.log([0.5] * len(_FITTED)),
        bounds=(np.log(_LEAST_SHARE), 0.0),
        loss="soft_l1",
        f_scale=_SOFT_ERROR,
        diff_step=1e-3,
    )
    return with_shares(result.x)


def fit_image_passes(cases: Sequence[Case], accelerator: Accelerator) -> Tiling:
    """The tiling with the passes of convolutions over few images that fit best."""
    tiling = problem_lib.tiling_of(accelerator)
    few = [case for case in cases if case.is_over_few_images]
    truth = np.log([bounds_s(case.from_compiler, accelerator) for case in few])

    def cost(passes: float) -> float:
        padded = dataclasses.replace(tiling, image_passes=passes)
        found = [bounds_s(lowered(case.name, padded), accelerator) for case in few]
        soft = ((np.log(found) - truth) / _SOFT_ERROR) ** 2
        return float(np.sum(np.sqrt(1 + soft)))

    result = optimize.minimize_scalar(
        cost, bounds=_PASSES, method="bounded", options={"xatol": 0.1}
    )
    return dataclasses.replace(tiling, image_passes=float(result.x))


def report(rows: Sequence[tuple[Case, Latency, Latency]]) -> str:
    """The Markdown table of `(case, predicted, truth)`, and what it says in all."""
    lines = [
        "| program | | all HBM, ms | compiler's | error | planned, ms | compiler's "
        "| error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, found, truth in rows:
        few = " *" if case.is_over_few_images else ""
        cells = [case.name + few, "fit" if case.is_fitted else "held out"]
        for ours, theirs in (
            (found.all_slow_s, truth.all_slow_s),
            (found.planned_s, truth.planned_s),
        ):
            cells += [f"{ours * 1e3:.3f}", f"{theirs * 1e3:.3f}"]
            cells.append(f"{ours / theirs - 1:+.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| programs | | all HBM: median error | rank correlation | planned: median "
        "error | rank correlation |",
        "|---|---|---|---|---|---|",
    ]
    for label, chosen in (
        ("fit", [row for row in rows if row[0].is_fitted]),
        ("held out", [row for row in rows if not row[0].is_fitted]),
        ("all", rows),
        ("all without *", [row for row in rows if not row[0].is_over_few_images]),
    ):
        if not chosen:
            continue
        cells = [label, str(len(chosen))]
        for field in ("all_slow_s", "planned_s"):
            ours = np.array([getattr(found, field) for _, found, _ in chosen])
            theirs = np.array([getattr(truth, field) for _, _, truth in chosen])
            cells.append(f"{np.median(np.abs(ours / theirs - 1)):.1%}")
            enough = len(chosen) > 2
            rank = stats.spearmanr(ours, theirs).statistic if enough else np.nan
            cells.append(f"{rank:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"\\* {FEW_IMAGES_NOTE}"]
    return "\n".join(lines)


def header(accelerator: Accelerator, tiling: Tiling) -> str:
    """What was compared, how, and with which constants."""
    version = importlib.metadata.version
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu"))
    shares = dataclasses.asdict(accelerator.efficiency)
    constants = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shares.items()
    )
    command = shlex.join(["python", "examples/calibrate_stablehlo.py", *sys.argv[1:]])
    return (
        f"StableHLO path against the compiler's estimates, {accelerator.name}; all "
        f"figures predicted.\n\n    {command}\n\n{packages}. Efficiency: {constants}; "
        f"image passes {tiling.image_passes:.2g}. Fitted on the families "
        f"{', '.join(FIT_FAMILIES)}."
    )


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    accelerator = _ACCELERATOR.value
    names = list(dict.fromkeys(_PROGRAMS.value))
    tiling = problem_lib.tiling_of(accelerator)
    cases = [read(name, accelerator, _CACHE_DIR.value) for name in names]
    if _FIT.value:
        fitted = [case for case in cases if case.is_fitted]
        if not fitted:
            raise app.UsageError(f"--fit needs programs of {', '.join(FIT_FAMILIES)}")
        accelerator = fit(fitted, accelerator)
        tiling = fit_image_passes(fitted, accelerator)
        cases = [
            dataclasses.replace(case, from_stablehlo=lowered(case.name, tiling))
            for case in cases
        ]
    rows = [
        (
            case,
            predict(case.from_stablehlo, accelerator),
            predict(case.from_compiler, accelerator),
        )
        for case in cases
    ]
    print(header(accelerator, tiling))
    print()
    print(report(rows))


if __name__ == "__main__":
    app.run(main)
