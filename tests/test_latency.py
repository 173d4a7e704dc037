import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwmodel import latency, presets
from hwmodel.accelerator import Accelerator, Dma, Efficiency, Memory
from hwmodel.latency import LatencyKind, OpLatency

# Round numbers: the clock is 1 Hz, so that cycles are seconds; fast memory moves 1000
# bytes a second, ops reach 400 of slow memory's 1000 by themselves, copies 500.
TOY = Accelerator(
    name="toy",
    fast=Memory(capacity_bytes=2**30, bandwidth_bytes_per_s=1000.0),
    slow=Memory(capacity_bytes=2**40, bandwidth_bytes_per_s=1000.0),
    dma=Dma(bandwidth_share=0.5),
    peak_flops_per_s={"bf16": 100.0, "s8": 200.0},
    vector_flops_per_s=10.0,
    transcendentals_per_s=1.0,
    clock_hz=1.0,
    slow_read_share=0.4,
)
USUAL = 1 / 400  # seconds per byte


def one(value):
    return np.array([value], float)


def roofline(accelerator=TOY, **columns):
    """The roofline of ops that do nothing but what `columns` say."""
    num_ops = max(len(column) for column in columns.values())
    zeros = np.zeros(num_ops)
    work = {
        "matmul_flops": zeros,
        "matmul_dtypes": ["bf16"] * num_ops,
        "vector_flops": zeros,
        "transcendentals": zeros,
        "total_bytes": zeros,
        "counts": zeros + 1,
    }
    return latency.roofline(accelerator, **(work | columns))


def fit(*, total, on=math.nan, hbm=0.0, slow=math.nan, flops=0.0, **more):
    """(base, slope, kind) of one op from its estimates, and the whole model."""
    more = {
        "accelerator": TOY,
        "matmul_flops": one(flops),
        "matmul_dtypes": ["bf16"],
        "vector_flops": one(0),
        "transcendentals": one(0),
        "counts": one(1),
    } | more
    model = latency.from_estimates(
        **more,
        total_bytes=one(total),
        on_cycles=one(on),
        on_slow_bytes=one(hbm),
        slow_cycles=one(slow),
    )
    return (
        float(model.base_s[0]),
        float(model.slope_s_per_byte[0]),
        LatencyKind(int(model.kind[0])),
    )


def test_roofline_of_hand_worked_ops():
    model = roofline(
        matmul_flops=[300.0, 0, 0, 300, 0],
        matmul_dtypes=["bf16", "", "", "s8", ""],
        vector_flops=[10.0, 50, 0, 0, 0],
        transcendentals=[0.0, 7, 0, 0, 0],
        total_bytes=[1000.0, 2000, 4000, 0, 0],
        counts=[1.0, 1, 3, 2, 9],
    )
    assert model.floor_s.tolist() == [3.0, 7.0, 0.0, 3.0, 0.0]
    assert model.base_s.tolist() == [1.0, 2.0, 12.0, 0.0, 0.0]
    assert model.slope_s_per_byte.tolist() == [USUAL] * 4 + [0.0]
    kinds = [LatencyKind.ROOFLINE] * 4 + [LatencyKind.FREE]
    assert model.kind.tolist() == kinds
    assert model.kind.dtype == np.uint8
    assert model.base_s.dtype == np.float64


def test_latency_is_flat_at_the_floor_and_then_rises():
    #  4 |          /       floor 2, base 1, slope 1/400:
    #  2 |-----.--/         the bend is where 1 + s / 400 = 2
    #  1 |  .
    #    +----------- 0, 400, 1200 slow bytes
    model = OpLatency(one(2), one(1), one(USUAL), np.zeros(1, np.uint8))
    slow_bytes = np.array([[0.0], [400.0], [1200.0]])
    seconds = latency.op_latency_s(model, slow_bytes)
    assert seconds.tolist() == [[2.0], [2.0], [4.0]]
    # Copies at 500 bytes/s: the op's own traffic takes 0, 0.8 and 2.4 seconds of it.
    spare = latency.spare_s(model, slow_bytes, TOY)
    np.testing.assert_allclose(spare, [[2.0], [1.2], [1.6]])


def test_spare_time_is_never_negative():
    model = OpLatency(one(0), one(0), one(1 / 2000), np.zeros(1, np.uint8))
    # Faster than the DMA itself: nothing is left over.
    assert latency.spare_s(model, one(1000), TOY).tolist() == [0.0]


def test_copy_time_has_a_fixed_part_per_execution():
    machine = TOY.replace(dma_latency_s=0.25)
    assert latency.copy_s(1000, machine) == 2.25
    assert latency.copy_s(1000, machine, count=4) == 9.0
    sizes = np.array([0, 500])
    assert latency.copy_s(sizes, machine).tolist() == [0.25, 1.25]


def test_numpy_in_numpy_out_and_jax_in_jax_out():
    model = roofline(total_bytes=[1000.0, 2000.0])
    slow = np.array([0.0, 400.0])
    assert isinstance(latency.op_latency_s(model, slow), np.ndarray)
    for function in (
        lambda s: latency.op_latency_s(model, s),
        lambda s: latency.spare_s(model, s, TOY),
    ):
        traced = jax.jit(jax.vmap(function))(jnp.asarray([slow, 2 * slow]))
        assert isinstance(traced, jax.Array)
        expected = [function(slow), function(2 * slow)]
        np.testing.assert_allclose(traced, expected, rtol=1e-6)
    on_device = OpLatency(*map(jnp.asarray, model))
    assert isinstance(latency.op_latency_s(on_device, slow), jax.Array)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"total_bytes": [1.0], "vector_flops": [1.0, 2.0]},
            r"shape \(1,\); expected \(2,",
        ),
        ({"total_bytes": [1.0, -1.0]}, r"total_bytes\[1\] is -1.0"),
        ({"matmul_flops": [math.nan]}, r"matmul_flops\[0\] is nan"),
        ({"counts": [math.inf]}, r"counts\[0\] is inf"),
        ({"total_bytes": [1.0], "matmul_dtypes": []}, "matmul_dtypes has 0 entries"),
        ({"matmul_flops": [[1.0]]}, r"shape \(1, 1\); expected \(T,\)"),
    ],
)
def test_roofline_refuses(columns, message):
    with pytest.raises(ValueError, match=message):
        roofline(**columns)


@pytest.mark.parametrize(
    ("estimates", "expected"),
    [
        pytest.param(
            {"total": 400_000, "on": 500, "slow": 1300},
            (500, 800 / 400_000, LatencyKind.TWO_POINT),
            id="all in fast memory, then none",
        ),
        pytest.param(
            # Half of the bytes stayed in slow memory: the line goes on to the left.
            {"total": 400_000, "hbm": 200_000, "on": 1000, "slow": 1400},
            (600, 400 / 200_000, LatencyKind.TWO_POINT),
            id="line through both points",
        ),
        pytest.param(
            {"total": 400_000, "on": 500, "slow": 400},
            (500, 0.0, LatencyKind.TWO_POINT),
            id="slow memory never makes an op faster",
        ),
        pytest.param(
            {"total": 10_000, "on": 10, "slow": 1010},
            (10, 10 * USUAL, LatencyKind.TWO_POINT),
            id="no slope above ten times the usual",
        ),
        pytest.param(
            {"total": 100_000, "hbm": 60_000, "on": 2000, "slow": 2800},
            (2000 - 2 * USUAL * 60_000, 2 * USUAL, LatencyKind.TWO_POINT),
            id="a far extrapolation is at most twice as steep as usual",
        ),
        pytest.param(
            {"total": 65_000, "hbm": 60_000, "on": 300, "slow": 300},
            (300, 0.0, LatencyKind.TWO_POINT),
            id="too little moved for a slope, too little left behind for one",
        ),
        pytest.param(
            {"total": 8_000, "on": 10, "slow": 30},
            (10, 0.0, LatencyKind.TWO_POINT),
            id="a small op: the difference is overhead, not bandwidth",
        ),
        pytest.param(
            {"total": 60_000, "slow": 100},
            (5, USUAL, LatencyKind.ONE_POINT),
            id="a small op: something is left of the base",
        ),
        pytest.param(
            {"total": 100_000, "hbm": 100_000, "on": 1000, "slow": 1000},
            (750, USUAL, LatencyKind.ONE_POINT),
            id="everything stayed in slow memory",
        ),
        pytest.param(
            {"total": 100_000, "on": 300},
            (300, USUAL, LatencyKind.ONE_POINT),
            id="only the estimate with fast memory",
        ),
        pytest.param(
            {"total": 100_000, "slow": 1000},
            (750, USUAL, LatencyKind.ONE_POINT),
            id="only the estimate without",
        ),
        pytest.param(
            # 250 s would be explained by the usual slope, 100 s are spent in fast
            # memory: of 200 s, slow memory explains 100.
            {"total": 100_000, "slow": 200},
            (100, 100 / 100_000, LatencyKind.ONE_POINT),
            id="slow memory explains no more than fast memory leaves",
        ),
        pytest.param(
            {"total": 100_000, "slow": 50},
            (45, 5 / 100_000, LatencyKind.ONE_POINT),
            id="an estimate below the fast memory's own time",
        ),
        pytest.param(
            {"total": 100_000, "slow": 1000, "flops": 90_000},
            (900, 100 / 100_000, LatencyKind.ONE_POINT),
            id="compute-bound: slow memory explains the rest",
        ),
        pytest.param(
            {"total": 100_000, "slow": 1000, "flops": 1e9},
            (980, 20 / 100_000, LatencyKind.ONE_POINT),
            id="FLOPs that do not fit into the estimate are cut",
        ),
        pytest.param(
            {"total": 100_000, "on": 1, "slow": 251, "is_copy": [True]},
            (50, 250 / 100_000, LatencyKind.TWO_POINT),
            id="a copy inside fast memory takes time",
        ),
        pytest.param(
            {"total": 100_000, "slow": 1000, "slow_slow_bytes": one(80_000)},
            (800, USUAL, LatencyKind.ONE_POINT),
            id="some bytes are in neither memory",
        ),
    ],
)
def test_estimates_of_hand_worked_ops(estimates, expected):
    base, slope, kind = fit(**estimates)
    assert base == pytest.approx(expected[0])
    assert slope == pytest.approx(expected[1])
    assert kind == expected[2]


def test_ops_without_an_estimate_beside_ops_with_one():
    model = latency.from_estimates(
        TOY,
        matmul_flops=[0.0, 5000.0, 0.0],
        matmul_dtypes=["", "bf16", ""],
        vector_flops=np.zeros(3),
        transcendentals=np.zeros(3),
        total_bytes=[1000.0, 4000.0, 0.0],
        counts=[1.0, 2.0, 1.0],
        on_cycles=[5.0, math.nan, math.nan],
        on_slow_bytes=[0.0, math.nan, math.nan],
        slow_cycles=np.full(3, math.nan),
    )
    assert model.kind.tolist() == [
        LatencyKind.ONE_POINT,
        LatencyKind.ROOFLINE,
        LatencyKind.FREE,
    ]
    assert model.base_s.tolist() == [5.0, 8.0, 0.0]
    assert model.floor_s.tolist() == [0.0, 0.0, 0.0]
    assert model.slope_s_per_byte.tolist() == [USUAL, USUAL, 0.0]


def test_without_any_estimate_it_is_the_roofline():
    work = {
        "matmul_flops": [5000.0, 0.0],
        "matmul_dtypes": ["bf16", ""],
        "vector_flops": [0.0, 1.0],
        "transcendentals": [0.0, 1.0],
        "total_bytes": [1000.0, 4000.0],
        "counts": [1.0, 2.0],
    }
    nothing = np.full(2, math.nan)
    machine = TOY.replace(clock_hz=None)  # not needed without cycles
    model = latency.from_estimates(
        machine, **work, on_cycles=nothing, on_slow_bytes=nothing, slow_cycles=nothing
    )
    expected = latency.roofline(machine, **work)
    for found, wanted in zip(model, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_loops_count_in_floor_and_base_but_not_in_the_slope():
    once = fit(total=100_000, on=300, slow=500, flops=10_000)
    often = fit(total=100_000, on=300, slow=500, flops=10_000, counts=one(7))
    assert often[0] == pytest.approx(7 * once[0])
    assert often[1:] == once[1:]


def test_the_clock_turns_cycles_into_seconds():
    fast_clock = TOY.replace(
        clock_hz=2.0,
        fast_bandwidth_bytes_per_s=2000.0,
        slow_bandwidth_bytes_per_s=2000.0,
        peak_flops_per_s={"bf16": 200.0},
    )
    for estimates in (
        {"total": 100_000, "on": 300, "slow": 500, "flops": 20_000},
        {"total": 100_000, "slow": 500},
    ):
        base, slope, _ = fit(**estimates)
        assert fit(**estimates, accelerator=fast_clock)[:2] == pytest.approx(
            (base / 2, slope / 2)
        )


def test_estimates_need_a_clock():
    with pytest.raises(ValueError, match="'toy' has no clock_hz"):
        fit(total=1000, on=5, accelerator=TOY.replace(clock_hz=None))


@pytest.mark.parametrize(
    ("estimates", "message"),
    [
        ({"total": 1000, "on": -5}, r"on_cycles\[0\] is -5.0"),
        ({"total": 1000, "slow": math.inf}, r"slow_cycles\[0\] is inf"),
        ({"total": 1000, "on": 5, "is_copy": [True, False]}, r"is_copy has shape"),
        ({"total": 1000, "on": 5, "slow_slow_bytes": [1.0, 2.0]}, "slow_slow_bytes"),
    ],
)
def test_from_estimates_refuses(estimates, message):
    with pytest.raises(ValueError, match=message):
        fit(**estimates)


@pytest.mark.parametrize("seed", range(10))
def test_any_estimates_give_a_sensible_model(seed):
    rng = np.random.default_rng(seed)
    num_ops = 500
    machine = presets.get("tpu_v5e")
    total = np.floor(10 ** rng.uniform(0, 8, num_ops))
    on_bytes = np.floor(total * rng.choice([0.0, 0.3, 0.9, 1.0], num_ops))
    on = np.floor(total / 1000 * 10 ** rng.uniform(-1, 2, num_ops))
    slow = np.floor(on * rng.uniform(0.5, 4, num_ops))
    on[rng.uniform(size=num_ops) < 0.2] = math.nan
    slow[rng.uniform(size=num_ops) < 0.2] = math.nan
    matmul_flops = 10 ** rng.uniform(3, 13, num_ops)
    model = latency.from_estimates(
        machine,
        matmul_flops=matmul_flops,
        matmul_dtypes=["bf16"] * num_ops,
        vector_flops=np.zeros(num_ops),
        transcendentals=np.zeros(num_ops),
        total_bytes=total,
        counts=np.ones(num_ops),
        on_cycles=on,
        on_slow_bytes=on_bytes,
        slow_cycles=slow,
        is_copy=rng.uniform(size=num_ops) < 0.1,
    )
    for column in model[:3]:
        assert np.isfinite(column).all()
        assert (column >= 0).all()
    assert (model.floor_s <= model.base_s).all()  # so that the floor never binds
    seconds = [latency.op_latency_s(model, f * total) for f in (0.0, 0.5, 1.0)]
    assert (seconds[0] <= seconds[1]).all()
    assert (seconds[1] <= seconds[2]).all()
    # With everything in fast memory no op is slower than the compiler says it is with
    # less, but for copies, which get a time of their own.
    known = ~np.isnan(on)
    at_most = np.where(known, on, slow) / machine.clock_hz
    copy_s = total / machine.fast.bandwidth_bytes_per_s / latency.COPY_SPEEDUP
    fine = (model.base_s <= np.maximum(at_most, copy_s) * (1 + 1e-9)) | np.isnan(
        at_most
    )
    assert fine.all()


# An efficiency ----------------------------------------------------------------------

SUSTAINED = TOY.replace(
    efficiency=Efficiency(
        matmul=0.5, vector=0.25, transcendental=0.2, fast=0.1, slow=0.8, overlap=False
    )
)


def test_a_sustained_roofline_of_hand_worked_ops():
    model = roofline(
        SUSTAINED,
        matmul_flops=[300.0, 300, 0, 0],
        matmul_dtypes=["bf16", "bf16", "", ""],
        vector_flops=[10.0, 0, 10, 0],
        transcendentals=[0.0, 0, 1, 0],
        total_bytes=[100.0, 1000, 100, 0],
    )
    # Matrix unit 6 s; vector unit 4 s, transcendentals 5 s; fast memory 1 s per 100 B.
    np.testing.assert_allclose(model.floor_s, [6, 6, 5, 0])
    np.testing.assert_allclose(model.base_s, [6, 10, 6, 0])
    np.testing.assert_allclose(model.slope_s_per_byte, [1 / 800] * 3 + [0])
    assert LatencyKind(model.kind[3]) is LatencyKind.FREE


def test_the_default_efficiency_is_the_plain_roofline():
    plain = Efficiency()
    assert TOY.efficiency == plain
    model = roofline(matmul_flops=[300.0], total_bytes=[1000.0])
    assert (model.floor_s[0], model.base_s[0]) == (3.0, 1.0)
    assert model.slope_s_per_byte[0] == 1 / 400


def test_estimates_know_better_than_an_efficiency():
    for columns in (
        {"total": 10_000, "on": 20.0, "hbm": 0.0, "slow": 40.0},
        {"total": 100_000, "slow": 400.0, "flops": 3000.0},
    ):
        assert fit(**columns) == fit(**columns, accelerator=SUSTAINED)


def test_ops_without_an_estimate_among_others_run_at_peak_rates():
    columns = {
        "matmul_flops": [0.0, 300],
        "matmul_dtypes": ["", "bf16"],
        "vector_flops": [0.0, 0],
        "transcendentals": [0.0, 0],
        "total_bytes": [10_000.0, 1000],
        "counts": [1.0, 1],
        "on_slow_bytes": [0.0, math.nan],
        "slow_cycles": [40.0, math.nan],
    }
    for on_cycles, same in (([20.0, math.nan], True), ([math.nan] * 2, False)):
        columns["on_cycles"] = on_cycles
        if not same:  # no estimate at all: the roofline, as sustained
            columns["slow_cycles"] = [math.nan] * 2
        plain = latency.from_estimates(TOY, **columns)
        sustained = latency.from_estimates(SUSTAINED, **columns)
        assert bool(plain.base_s[1] == sustained.base_s[1]) is same
