"""Steering the TPU compiler: the hints, what is learned, the loop, and the calls."""

import dataclasses
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jax_malloc
from frontends import hlo, stablehlo, tpu
from hwmodel import presets
from jax_malloc import tpu as steering
from jax_malloc.steering import calls, loop, overrides, request, result, trial
from jax_malloc.steering.op_times import OpTimes
from jax_malloc.steering.overrides import BufferOrder, PrefetchStart
from jax_malloc.steering.request import Request

GOLDEN = pathlib.Path(__file__).parent / "testdata"
V5E = presets.get("tpu_v5e")
OFF = {"xla_msa_enable": "false"}
SHAPE = "f32[4096,4096]{1,0:T(8,128)%s}"  # 64 MiB: one at a time in 112 MiB

needs_libtpu = pytest.mark.skipif(
    not tpu.is_available(), reason='libtpu is not installed: pip install ".[tpu]"'
)

# ---------------------------------------------------------------- hints as text protos


def parsed(text):
    """`(position field, pattern, tuple index, value)` of each sort-order override."""
    found = re.findall(
        r'overrides \{ hlo_position_matcher \{ (\w+): "((?:[^"\\]|\\.)*)"'
        r"(?: tuple_index \{((?: index: \d+)+) \})? \} "
        r"override_options \{ assign_value: (-?\d+) \} \}",
        text,
    )
    return [
        (
            field,
            re.sub(r"\\(.)", r"\1", pattern),
            tuple(map(int, re.findall(r"\d+", index))),
            int(value),
        )
        for field, pattern, index, value in found
    ]


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_a_pattern_matches_its_name_and_no_other(name):
    pattern = overrides.full_match(name)
    assert re.fullmatch(pattern, name)
    assert not re.fullmatch(pattern, name + "x")
    for i, character in enumerate(name):
        if not character.isalnum():
            assert not re.fullmatch(pattern, name[:i] + "x" + name[i + 1 :])


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_quoting_survives_the_text_proto(text):
    quoted = overrides.quoted(text)
    assert re.fullmatch(r'"(?:[^"\\]|\\.)*"', quoted)
    assert re.sub(r"\\(.)", r"\1", quoted[1:-1]) == text


def test_orders_come_back_from_the_text():
    text = overrides.sort_order_text(
        [
            BufferOrder(name="fusion.12", value=-2),
            BufferOrder(name="add-start", index=(1, 0), value=7),
        ]
    )
    (field, name, index, value), second = parsed(text)
    assert field == "instruction_name_regex"
    assert re.fullmatch(name, "fusion.12")
    assert not re.fullmatch(name, "fusionx12")
    assert (index, value) == ((), -2)
    assert re.fullmatch(second[1], "add-start")
    assert second[2:] == ((1, 0), 7)


@pytest.mark.parametrize(
    ("line", "matches"),
    [
        ("%w.1 = bf16[8,8]{1,0:T(8,128)} parameter(3), sharding={replicated}", True),
        ("w = f32[] parameter(3)", True),
        ("%w.1 = bf16[8,8]{1,0:T(8,128)} parameter(13), sharding={replicated}", False),
        ("%state = (f32[8]{0}, s32[]) parameter(3)", False),
        ("%w.1 = bf16[8,8]{1,0} copy(bf16[8,8]{1,0} %parameter.3)", False),
    ],
)
def test_parameters_are_matched_by_their_number(line, matches):
    order = BufferOrder(name="params__w__.1", value=-1, parameter=3)
    ((field, pattern, _, _),) = parsed(overrides.sort_order_text([order]))
    assert field == "instruction_regex"
    assert bool(re.fullmatch(pattern, line)) == matches


def test_a_buffer_has_one_order_value():
    once = BufferOrder(name="fusion", value=1)
    assert len(parsed(overrides.sort_order_text([once, once]))) == 1
    with pytest.raises(ValueError, match=r"'fusion' \[\] has order values 1 and 2"):
        overrides.sort_order_text([once, BufferOrder(name="fusion", value=2)])


def test_prefetch_starts_as_text():
    start = PrefetchStart(instruction="dot.1", operand=1, eagerness=0.25)
    assert overrides.prefetch_text([start]) == (
        r'overrides { hlo_operand_filter { instruction_name_regex: "dot\\.1" '
        "operand_number: 1 } override_options { prefetch_eagerness: 0.25 } }"
    )
    with pytest.raises(ValueError, match=r"operand 1 of 'dot\.1' has eagerness 1\.5"):
        overrides.prefetch_text([dataclasses.replace(start, eagerness=1.5)])


def test_no_hints_are_no_options():
    assert overrides.compiler_options([]) == {}


def test_order_values_of_a_request():
    asked = Request(first=(7, 3), last=(5,), knobs=(("max_overlap_ratio", 4.0),))
    assert asked.priorities == {7: -2, 3: -1, 5: 1}


def test_every_knob_is_one_of_the_solver():
    from jax_malloc.solvers.xla_msa.options import Options
    from jax_malloc.steering import order_search

    fields = {f.name for f in dataclasses.fields(Options)}
    assert set(request.KNOB_OPTIONS) <= fields
    assert set(order_search.KNOBS) <= set(request.KNOB_OPTIONS)


# ------------------------------------------------------------------ plans as hints


def golden(name):
    slow, xla = (GOLDEN / f"{name}.{kind}.hlo.gz" for kind in ("slow", "xla"))
    return hlo.load(slow, xla=xla)


def test_a_plan_gives_each_buffer_one_value():
    program = golden("mlp_train")
    machine = dataclasses.replace(
        V5E,
        fast=dataclasses.replace(
            V5E.fast, reserved_bytes=V5E.fast.capacity_bytes - 2**20
        ),
    )
    plan = jax_malloc.solve(program, machine, solver="greedy")
    options = plan.compiler_options()
    values = parsed(options[overrides.SORT_ORDER_OPTION])
    assert len(values) == int(plan.problem.eligible.sum())
    assert len({(field, name, index) for field, name, index, _ in values}) == len(
        values
    )
    fast = {
        s.buffer_id for s in plan.mapping.segments if plan.problem.eligible[s.buffer_id]
    }
    assert sum(value < 0 for *_, value in values) == len(fast)
    eagerness = re.findall(
        r"prefetch_eagerness: ([\d.e-]+)", options.get(overrides.PREFETCH_OPTION, "")
    )
    assert all(0 <= float(x) <= 1 for x in eagerness)


def test_a_plan_without_compiled_names_has_no_hints():
    program = stablehlo.from_jax(jnp.sin, jax.ShapeDtypeStruct((512, 512), jnp.float32))
    plan = jax_malloc.solve(program, solver="greedy")
    with pytest.raises(ValueError, match="compiled HLO text whose names"):
        plan.compiler_options()


# ----------------------------------------------------------------- a compiler to steer

# A chain in which `long` is used by the first and the last op, and `s1`... by
# neighbours. Only one of them fits at any time.
NAMES = ("long", "s1", "s2", "s3", "s4", "s5")
OPERANDS = {
    "long": ["x"],
    "s1": ["long"],
    "s2": ["s1"],
    "s3": ["s2"],
    "s4": ["s3"],
    "s5": ["s4", "long"],
}


def compiled(fast, cycles=lambda name, num_slow: 1000 + 400_000 * num_slow):
    """Scheduled HLO with some buffers in fast memory, and estimates by the number of
    slow buffers that each op touches."""
    lines = [f"  %x = {SHAPE % ''} parameter(0)"]
    for name, operands in OPERANDS.items():
        slow = sum(b not in fast for b in (name, *operands))
        opcode = "negate" if len(operands) == 1 else "add"
        is_root = "ROOT " if name == "s5" else ""
        lines.append(
            f"  {is_root}%{name} = {SHAPE % ('S(1)' if name in fast else '')} "
            f"{opcode}({', '.join('%' + o for o in operands)}), "
            f'backend_config={{"estimated_cycles":"{cycles(name, slow)}"}}'
        )
    array = "f32[4096,4096]"
    return (
        "HloModule chain, is_scheduled=true\n\n"
        f"ENTRY %main (x: {array}) -> {array} {{\n" + "\n".join(lines) + "\n}\n"
    )


class Compiler:
    """Fills fast memory in the order it is given; by default `long` first, which is
    worth two accesses and keeps all others out."""

    def __init__(self, cycles=None):
        self.asked = []
        self._cycles = {} if cycles is None else {"cycles": cycles}

    def __call__(self, options):
        self.asked += options
        return [self.text(o) for o in options]

    def text(self, options):
        if options == OFF:
            return compiled((), **self._cycles)
        priority = dict.fromkeys(NAMES, 0)
        for field, pattern, _, value in parsed(
            options.get(overrides.SORT_ORDER_OPTION, "")
        ):
            for name in NAMES:
                if field == "instruction_name_regex" and re.fullmatch(pattern, name):
                    priority[name] = value
        live = {n: set(range(i, i + 2)) for i, n in enumerate(NAMES)}
        live["long"] = set(range(6))
        taken, fast = set(), []
        for name in sorted(NAMES[:-1], key=lambda n: (priority[n], NAMES.index(n))):
            if not live[name] & taken:
                taken |= live[name]
                fast.append(name)
        return compiled(fast, **self._cycles)


def steered(compile, compiles=6, search_s=1.0):
    return loop.run(compile, OFF, V5E, compiles=compiles, seed=0, search_s=search_s)


def test_the_loop_finds_the_better_order():
    compile = Compiler()
    history = steered(compile)
    assert len(compile.asked) <= 6
    assert compile.asked[:2] == [OFF, {}]
    # s1, s3 or s2, s4: four accesses of fast memory instead of three.
    assert history.best.latency_s < history.default.latency_s
    assert history.best.text in [compile.text(o) for o in compile.asked[2:]]


def test_the_result_says_what_was_asked_and_obtained():
    history = steered(Compiler())
    outcome = result.of_history(history, name="chain", topology="v5e:2x2")
    assert outcome.obtained_latency_s < outcome.default_latency_s
    assert outcome.speedup > 1
    assert outcome.compiler_options[overrides.SORT_ORDER_OPTION]
    assert Compiler().text(outcome.compiler_options) == outcome.obtained_hlo
    assert outcome.slow_hlo == compiled(())
    assert outcome.obtained_cycles < outcome.default_cycles
    assert any(h.is_honoured and h.obtained_bytes for h in outcome.hints)
    text = str(outcome)
    assert "default" in text
    assert "(predicted, -" in text
    assert "NOTE" not in text


def test_worse_by_the_compilers_own_sum_is_said():
    outcome = result.of_history(steered(Compiler()), name="chain", topology="v5e")
    worse = dataclasses.replace(outcome, obtained_cycles=2 * outcome.default_cycles)
    assert "NOTE: the compiler's own estimates add up to more" in str(worse)


def test_never_worse_than_the_default():
    """A compiler whose ops get slower with any placement but its own."""
    default = set(Compiler().text({}).splitlines())

    class Stubborn(Compiler):
        def text(self, options):
            text = super().text(options)
            if options == OFF or set(text.splitlines()) == default:
                return text
            return re.sub(r'cycles":"(\d+)', r'cycles":"9\1', text)

    history = steered(Stubborn())
    outcome = result.of_history(history, name="chain", topology="v5e")
    assert history.best is history.default
    assert outcome.compiler_options == {}
    assert outcome.hints == ()
    assert outcome.obtained_hlo == outcome.default_hlo
    assert outcome.obtained_latency_s == outcome.default_latency_s
    assert "no hint was better than the default" in str(outcome)


def test_refusals_are_kept_and_do_no_harm():
    compile = Compiler()

    def refuse(options):
        if any(o not in (OFF, {}) for o in options):
            return [RuntimeError("No such compile option")] * len(options)
        return compile(options)

    history = steered(refuse, compiles=5)
    assert history.refusals == ("No such compile option",) * 3
    outcome = result.of_history(history, name="chain", topology="v5e")
    assert outcome.obtained_latency_s == outcome.default_latency_s
    assert "refused: No such compile option" in str(outcome)


def test_a_function_that_does_not_compile_raises():
    with pytest.raises(RuntimeError, match="out of memory"):
        steered(lambda options: [RuntimeError("out of memory")] * len(options))


def test_two_compiles_give_the_default():
    compile = Compiler()
    history = steered(compile, compiles=2)
    assert compile.asked == [OFF, {}]
    assert history.best is history.default


def test_the_same_seed_asks_the_same(monkeypatch):
    monkeypatch.setattr(loop, "_STEPS", 40)
    first, second = Compiler(), Compiler()
    steered(first, compiles=4, search_s=600)
    steered(second, compiles=4, search_s=600)
    assert first.asked == second.asked


def test_another_program_is_not_kept_for_its_speed():
    """One op fewer is not a better mapping."""

    class Cheating(Compiler):
        def text(self, options):
            text = super().text(options)
            if options in (OFF, {}):
                return text
            return text.replace("%s4", "%t4")

    history = steered(Cheating())
    assert history.best is history.default


# ------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("name", ["conv_net", "mlp_train", "kv_decode"])
def test_op_times_repeat_what_was_observed(name):
    slow = hlo.load(GOLDEN / f"{name}.slow.hlo.gz")
    text = hlo.read_text(GOLDEN / f"{name}.xla.hlo.gz")
    default = trial.read(slow, text, V5E)
    times = OpTimes(default.problem)
    times.observe(default.problem.program)
    fast, duration = default.fast, times.durations_s(default.fast)
    for t, op in enumerate(default.problem.program.ops):
        mine = fast[default.problem.access_op == t]
        if op.opcode == "copy" or len(op.estimates) < 2 or not mine.any():
            continue
        cycles = min(op.estimates, key=lambda e: e.slow_bytes).cycles
        assert duration[t] * V5E.clock_hz == pytest.approx(cycles * op.count, rel=0.1)


def test_what_is_learned_of_an_op_holds_for_its_twin():
    """s2 and s3 do the same; s2 is observed with both of its buffers fast."""
    slow = hlo.from_text(compiled(()))
    default = trial.read(slow, compiled(("s1", "s2")), V5E)
    times = OpTimes(default.problem)
    problem = default.problem
    index = problem.program.op_index
    fast = np.isin(
        problem.access_buffer,
        [problem.program.buffer_index[name, ()] for name in ("s2", "s3")],
    )
    before = times.durations_s(fast)[index["s3"]]
    times.observe(problem.program)
    after = times.durations_s(fast)[index["s3"]]
    assert after * V5E.clock_hz == pytest.approx(1000)
    assert after != pytest.approx(before, rel=1e-3) or before == pytest.approx(after)


def test_guesses_agree_with_what_was_observed():
    slow = hlo.from_text(compiled(()))
    default = trial.read(slow, compiled(("s1", "s3")), V5E)
    times = OpTimes(default.problem)
    times.observe(default.problem.program)
    guess = times.sampled(np.random.default_rng(0))
    known, unknown = default.fast, ~default.fast
    np.testing.assert_allclose(guess.durations_s(known), times.durations_s(known))
    assert not np.allclose(guess.durations_s(unknown), times.durations_s(unknown))


# ---------------------------------------------------------------- calls with options


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(calls, "on_tpu", lambda: True)


def steer_as(monkeypatch, options):
    """`OptimizedFunction.steer` finds these options, and says so."""
    found = types.SimpleNamespace(compiler_options=options)
    monkeypatch.setattr(steering, "steer", lambda *args, **kwargs: found)


X = jnp.arange(4.0)
ACCEPTED = {"xla_embed_ir_in_executable": True}
REFUSED = {"xla_tpu_msa_sort_order_overrides": "overrides { }"}


def optimized(**options):
    seen = []

    def double(x, y=1):
        seen.append(x.shape)
        return 2 * x * y

    return jax_malloc.optimize(double, **options), seen


def test_on_a_tpu_calls_take_the_options(monkeypatch, on_tpu):
    steer_as(monkeypatch, ACCEPTED)
    called, jit = [], jax.jit

    def spy(f, **options):
        jitted = jit(f, **options)

        def call(*args):
            called.append((args[0].shape, options["compiler_options"]))
            return jitted(*args)

        return call

    f, _ = optimized()
    monkeypatch.setattr(jax, "jit", spy)
    f.steer(X)
    np.testing.assert_array_equal(f(X), 2 * X)
    np.testing.assert_array_equal(f(X[:2]), 2 * X[:2])  # another shape: as before
    assert called == [((4,), ACCEPTED)]


def test_nothing_found_changes_nothing(monkeypatch, on_tpu):
    steer_as(monkeypatch, REFUSED)
    f, _ = optimized()
    f.steer(X)
    steer_as(monkeypatch, {})
    f.steer(X)
    np.testing.assert_array_equal(f(X), 2 * X)


def test_elsewhere_calls_do_not(monkeypatch):
    steer_as(monkeypatch, REFUSED)
    f, _ = optimized()
    f.steer(X)
    np.testing.assert_array_equal(f(X), 2 * X)


def test_refused_options_warn_once_and_the_call_goes_on(monkeypatch, on_tpu, recwarn):
    steer_as(monkeypatch, REFUSED)
    f, _ = optimized()
    f.steer(X)
    with pytest.warns(RuntimeWarning, match="No such compile option"):
        np.testing.assert_array_equal(f(X), 2 * X)
    recwarn.clear()
    np.testing.assert_array_equal(f(X), 2 * X)
    assert not recwarn.list


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f: jax.jit(f)(X),
        lambda f: jax.jit(lambda: f(X))(),
        lambda f: jax.vmap(f)(X),
        lambda f: jax.grad(lambda x: f(x).sum())(X) * X,
    ],
)
def test_transformations_see_the_plain_function(monkeypatch, on_tpu, transformed):
    steer_as(monkeypatch, ACCEPTED)
    f, _ = optimized()
    f.steer(X)
    np.testing.assert_allclose(transformed(f), 2 * X)


def test_static_arguments_are_part_of_what_was_steered(monkeypatch, on_tpu):
    steer_as(monkeypatch, ACCEPTED)
    f, _ = optimized(static_argnames="y")
    f.steer(X, y=2)
    np.testing.assert_array_equal(f(X, y=2), 4 * X)


def test_what_was_jitted_before_cannot_be_steered(monkeypatch):
    steer_as(monkeypatch, ACCEPTED)
    f = jax_malloc.optimize(jax.jit(lambda x: x))
    with pytest.raises(ValueError, match="was jitted before it came here"):
        f.steer(X)


def test_too_few_compiles_are_refused():
    with pytest.raises(ValueError, match="compiles is 1; it must be at least 2"):
        jax_malloc.optimize(jnp.sin, compiles=1)
    with pytest.raises(ValueError, match="compiles is 0; it must be at least 2"):
        steering.steer(jnp.sin, X, compiles=0)


# ---------------------------------------------------------------- the real compiler


@needs_libtpu
def test_the_real_compiler_is_never_worse_for_it(tmp_path):
    def wide_mlp(x, w1, w2):
        y = jnp.tanh(x @ w1)
        return jnp.tanh(jnp.tanh(y @ w2) + y) @ w1

    x = jax.ShapeDtypeStruct((8192, 4096), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    found = steering.steer(
        wide_mlp, x, w, w, compiles=4, search_s=1.0, cache_dir=tmp_path
    )
    assert not found.refusals
    assert len(found.attempts) == 2
    assert found.obtained_latency_s <= found.default_latency_s
    lowering = tpu.lower(wide_mlp, x, w, w)
    (text,) = tpu.compile_texts(
        lowering,
        topology="v5e",
        compiler_options=[found.compiler_options],
        cache_dir=tmp_path,
    )
    assert text == found.obtained_hlo
