import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwmodel import latency, queue
from hwmodel.accelerator import Accelerator, Dma, Memory
from hwmodel.latency import OpLatency
from hwmodel.simulator import Copy, simulate

# Copies move 1 byte a second, ops reach 1 byte a second by themselves.
TOY = Accelerator(
    name="toy",
    fast=Memory(capacity_bytes=2**30, bandwidth_bytes_per_s=1000.0),
    slow=Memory(capacity_bytes=2**40, bandwidth_bytes_per_s=1.0),
    dma=Dma(bandwidth_share=1.0),
    peak_flops_per_s={"bf16": 1.0},
    vector_flops_per_s=1.0,
    transcendentals_per_s=1.0,
    slow_read_share=1.0,
)
DUPLEX = TOY.replace(dma_full_duplex=True)


def ops(*seconds):
    """Ops of these lengths that touch fast memory only."""
    base = np.array(seconds, float)
    zeros = np.zeros_like(base)
    return OpLatency(zeros, base, zeros, zeros.astype(np.uint8))


def run(model, copies, *, slow_bytes=None, accelerator=TOY):
    slow_bytes = np.zeros(len(model.base_s)) if slow_bytes is None else slow_bytes
    return simulate(model, slow_bytes, copies, accelerator)


def fetch(start, done, size_bytes, count=1.0):
    return Copy(start, done, size_bytes, True, count)


def evict(start, done, size_bytes, count=1.0):
    return Copy(start, done, size_bytes, False, count)


def test_a_copy_that_fits_beside_the_ops_is_hidden():
    # ops   [- 2 -][-- 3 --][- 1 -]
    # copy  ~~~~~~ ~~                 4 bytes, issued at 0, due at boundary 2
    line = run(ops(2, 3, 1), [fetch(0, 2, 4)])
    assert line.op_start_s.tolist() == [0, 2, 5]
    assert line.op_duration_s.tolist() == [2, 3, 1]
    assert line.stall_s.tolist() == [0, 0, 0, 0]
    assert line.copy_issue_s.tolist() == [0]
    assert line.copy_done_s.tolist() == [4]
    assert line.copy_exposed_s.tolist() == [0]
    assert line.latency_s == 6


def test_what_is_not_done_in_time_stalls_the_op():
    # ops   [- 2 -][-- 3 --]..[- 1 -]
    # copy         ~~~~~~~~ ~~         5 bytes, issued at boundary 1, due at 2
    line = run(ops(2, 3, 1), [fetch(1, 2, 5)])
    assert line.stall_s.tolist() == [0, 0, 2, 0]
    assert line.op_start_s.tolist() == [0, 2, 7]
    assert line.copy_issue_s.tolist() == [2]
    assert line.copy_done_s.tolist() == [7]
    assert line.copy_exposed_s.tolist() == [2]
    assert line.latency_s == 8


def test_copies_get_only_what_the_op_leaves_over():
    # Op 0 takes 4 s and moves 3 bytes of slow memory itself: 1 s is left for copies.
    model = OpLatency(np.array([4.0]), np.zeros(1), np.ones(1), np.zeros(1, np.uint8))
    line = run(model, [fetch(0, 1, 2)], slow_bytes=[3.0])
    assert line.stall_s.tolist() == [0, 1]
    assert line.latency_s == 5
    # Half of the copy was served evenly over the op, so it ends a second later.
    assert line.copy_done_s.tolist() == [5]
    half = run(model, [fetch(0, 1, 1)], slow_bytes=[3.0])
    assert half.copy_done_s.tolist() == [4]
    quarter = run(model, [fetch(0, 1, 0.25)], slow_bytes=[3.0])
    assert quarter.copy_done_s.tolist() == [1]


def test_the_queue_is_served_in_the_order_of_issue():
    # ops   [- 1 -][- 1 -]....[- 1 -]
    # A     ~~~~~~  ~~~~~ ~~~ ~           5 bytes, due at the program's end
    # B                    waits behind A, 1 byte, due at boundary 2
    # The op that needs B waits for the rest of A (3) and for B (1).
    line = run(ops(1, 1, 1), [fetch(1, 2, 1), evict(0, 3, 5)])
    assert line.stall_s.tolist() == [0, 0, 4, 0]
    assert line.copy_done_s.tolist() == [6, 5]
    assert line.copy_exposed_s.tolist() == [1, 3]
    assert line.latency_s == 7


def test_copies_of_one_boundary_go_by_deadline_then_size():
    early, small, large = fetch(0, 1, 2), fetch(0, 2, 1), fetch(0, 2, 3)
    line = run(ops(2, 4), [large, small, early])
    assert line.copy_done_s.tolist() == [6, 3, 2]
    assert line.latency_s == 6


def test_the_dma_idles_until_a_copy_is_issued():
    # Copy A ends halfway through op 0; B is issued at boundary 1 only.
    line = run(ops(4, 1), [fetch(0, 1, 2), fetch(1, 2, 2)])
    assert line.stall_s.tolist() == [0, 0, 1]
    assert line.copy_issue_s.tolist() == [0, 4]


def test_a_copy_between_the_same_boundary_is_all_stall():
    line = run(ops(5, 5), [fetch(1, 1, 3)])
    assert line.stall_s.tolist() == [0, 3, 0]
    assert line.copy_issue_s.tolist() == [5]
    assert line.copy_done_s.tolist() == [8]


def test_the_program_ends_when_its_copies_do():
    line = run(ops(1), [evict(0, 1, 3), evict(1, 1, 2)])
    assert line.stall_s.tolist() == [0, 4]
    assert line.latency_s == 5


def test_full_duplex_serves_both_directions_at_once():
    # ops      [- 1 -]..[- 1 -]        half duplex: 1 + 2 + 4 bytes of stall
    # prefetch ~~~~~~ ~~               3 bytes, due at 1
    # evict    ~~~~~~ ~~ ~             4 bytes, due at 2: goes on during the stall
    copies = [fetch(0, 1, 3), evict(0, 2, 4)]
    both = run(ops(1, 1), copies, accelerator=DUPLEX)
    assert both.stall_s.tolist() == [0, 2, 0]
    assert both.copy_done_s.tolist() == [3, 4]
    assert both.copy_exposed_s.tolist() == [2, 0]
    assert both.latency_s == 4
    assert run(ops(1, 1), copies).latency_s == 7


def test_full_duplex_waits_for_the_slower_direction():
    line = run(ops(1), [fetch(0, 1, 3), evict(0, 1, 5)], accelerator=DUPLEX)
    assert line.stall_s.tolist() == [0, 4]
    assert line.copy_exposed_s.tolist() == [2, 4]
    assert line.copy_done_s.tolist() == [3, 5]


def test_every_execution_of_a_copy_pays_the_fixed_latency():
    machine = TOY.replace(dma_latency_s=0.5)
    line = run(ops(1), [fetch(0, 1, 2, count=4)], accelerator=machine)
    assert line.stall_s.tolist() == [0, 4 * 2.5 - 1]


def test_an_empty_program_and_no_copies():
    assert run(ops(), []).latency_s == 0
    assert run(ops(), [fetch(0, 0, 2)]).stall_s.tolist() == [2]
    assert run(ops(1, 2), []).copy_done_s.shape == (0,)


@pytest.mark.parametrize(
    ("copy", "message"),
    [
        (fetch(2, 1, 1), "boundaries 2 and 1; expected 0 <= start <= done <= 3"),
        (fetch(-1, 1, 1), "boundaries -1 and 1"),
        (fetch(0, 4, 1), "boundaries 0 and 4"),
        (fetch(0, 1, -1), "has -1 bytes"),
        (fetch(0, 1, 1, count=-2), "runs -2 times"),
    ],
)
def test_impossible_copies_are_refused(copy, message):
    with pytest.raises(ValueError, match=message):
        run(ops(1, 1, 1), [fetch(0, 1, 1), copy])


def test_slow_bytes_are_one_per_op():
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(3,\)"):
        run(ops(1, 1, 1), [], slow_bytes=[0.0, 0.0])


def random_case(seed):
    """A program with few small copies or many large ones: most seeds stall, not all."""
    rng = np.random.default_rng(seed)
    largest = rng.choice([2, 5, 9])
    num_ops, num_copies = rng.integers(1, 40), rng.integers(0, 60)
    model = OpLatency(
        rng.exponential(2, num_ops),
        rng.exponential(3, num_ops),
        np.full(num_ops, 1 / TOY.direct_bytes_per_s),
        np.zeros(num_ops, np.uint8),
    )
    slow_bytes = rng.integers(0, 5, num_ops) * (rng.uniform(size=num_ops) < 0.5)
    start = rng.integers(0, num_ops + 1, num_copies)
    done = np.minimum(start + rng.integers(0, 9, num_copies), num_ops)
    copies = [
        Copy(int(s), int(d), int(rng.integers(0, largest)), bool(rng.integers(2)))
        for s, d in zip(start, done, strict=True)
    ]
    return model, slow_bytes.astype(float), copies


def queues_of(copies, accelerator):
    """`(start, done, service)` per queue, for the closed forms."""
    served = [
        (c.is_prefetch, (c.start, c.done, latency.copy_s(c.size_bytes, accelerator)))
        for c in copies
    ]
    if not accelerator.dma.full_duplex:
        return [[copy for _, copy in served]]
    return [[copy for way, copy in served if way == want] for want in (True, False)]


@pytest.mark.parametrize("machine", [TOY, DUPLEX], ids=["half", "full"])
@pytest.mark.parametrize("seed", range(40))
def test_the_timeline_adds_up(machine, seed):
    model, slow_bytes, copies = random_case(seed)
    line = run(model, copies, slow_bytes=slow_bytes, accelerator=machine)
    duration = latency.op_latency_s(model, slow_bytes)
    np.testing.assert_array_equal(line.op_duration_s, duration)
    assert line.latency_s == pytest.approx(duration.sum() + line.stall_s.sum())
    ends = line.op_start_s + duration
    starts = np.append(line.op_start_s, line.latency_s) - line.stall_s
    np.testing.assert_allclose(starts, np.insert(ends, 0, 0.0), atol=1e-9)
    exposed = line.copy_exposed_s.sum()
    assert exposed >= line.stall_s.sum() * (1 - 1e-9)
    if not machine.dma.full_duplex:
        assert exposed == pytest.approx(line.stall_s.sum())
    deadline = np.append(line.op_start_s, line.latency_s)
    for k, copy in enumerate(copies):
        alone = latency.copy_s(copy.size_bytes, machine)
        assert line.copy_done_s[k] <= deadline[copy.done] + 1e-9
        assert line.copy_done_s[k] >= line.copy_issue_s[k] + alone - 1e-9
    for direction in (True, False):
        order = sorted(
            (copies[k], line.copy_done_s[k])
            for k in range(len(copies))
            if copies[k].is_prefetch == direction
        )
        done = [d for _, d in order]
        assert done == sorted(done)  # first in, first out


@pytest.mark.parametrize("machine", [TOY, DUPLEX], ids=["half", "full"])
@pytest.mark.parametrize("seed", range(60))
def test_total_stall_in_closed_form(machine, seed):
    model, slow_bytes, copies = random_case(seed)
    line = run(model, copies, slow_bytes=slow_bytes, accelerator=machine)
    spare = latency.spare_s(model, slow_bytes, machine).tolist()
    total = queue.total_stall_s(spare, *queues_of(copies, machine))
    assert total == pytest.approx(line.stall_s.sum())


def test_random_cases_stall():
    """The comparisons above mean something."""
    stalls = [
        run(model, copies, slow_bytes=slow_bytes).stall_s
        for model, slow_bytes, copies in map(random_case, range(60))
    ]
    assert sum(stall.sum() > 1 for stall in stalls) > 20
    assert sum(stall.sum() == 0 for stall in stalls) > 2


def test_total_stall_of_no_queue_is_nothing():
    assert queue.total_stall_s([1.0, 2.0]) == 0
    assert queue.total_stall_s([1.0, 2.0], []) == 0
    assert queue.total_stall_s([1.0], [], [(0, 1, 3.0)]) == 2


def test_arrivals_and_deadlines_of_a_drawn_queue():
    # FIFO    A: 0..3, 2 s    B: 1..1, 1 s    C: 1..2, 4 s    S = 2, 3, 7
    # t                0  1  2  3
    # arrived          2  7  7  7
    # due              0  3  7  7      B is due at 1, and A is ahead of it
    start, done = jnp.array([1, 0, 1]), jnp.array([2, 3, 1])
    service = jnp.array([4.0, 2.0, 1.0])
    arrived, due = queue.arrivals_and_deadlines(start, done, service, 3)
    assert arrived.tolist() == [2, 7, 7, 7]
    assert due.tolist() == [0, 3, 7, 7]
    # 1 s beside each op: 2 s of A and B are left at 1, then 3 s of C at 2.
    assert queue.stalls_s(jnp.ones(3), arrived, due).tolist() == [0, 2, 3, 0]


@pytest.mark.parametrize("machine", [TOY, DUPLEX], ids=["half", "full"])
def test_stalls_under_jit_and_vmap(machine):
    """A padded batch of random cases, in float32, against the reference."""
    num_ops, num_copies = 40, 60
    spare = np.zeros((30, num_ops), np.float32)
    start = np.zeros((30, num_copies), np.int32)
    done = np.zeros((30, num_copies), np.int32)
    service = np.full((30, num_copies), 1e3, np.float32)  # padding must not count
    active = np.zeros((30, 2, num_copies), bool)
    expected = np.zeros(30)
    for row in range(30):
        model, slow_bytes, copies = random_case(row)
        line = run(model, copies, slow_bytes=slow_bytes, accelerator=machine)
        expected[row] = line.stall_s.sum()
        length = len(model.base_s)
        spare[row, :length] = latency.spare_s(model, slow_bytes, machine)
        for k, copy in enumerate(copies):
            # The program's end is boundary `length`: padded ops have no spare time.
            start[row, k], done[row, k] = copy.start, copy.done
            service[row, k] = latency.copy_s(copy.size_bytes, machine)
            other_queue = machine.dma.full_duplex and not copy.is_prefetch
            active[row, int(other_queue), k] = True

    @jax.jit
    @jax.vmap
    def total(spare, start, done, service, active):
        def one_queue(mine):
            return queue.arrivals_and_deadlines(start, done, service, num_ops, mine)

        arrived, due = jax.vmap(one_queue)(active)
        return queue.stalls_s(spare, arrived, due).sum()

    found = total(spare, start, done, service, active)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("machine", [TOY, DUPLEX], ids=["half", "full"])
@pytest.mark.parametrize("seed", range(20))
def test_more_bandwidth_never_raises_latency(machine, seed):
    _, slow_bytes, copies = random_case(seed)
    rng = np.random.default_rng(seed)
    num_ops = len(slow_bytes)
    work = {
        "matmul_flops": rng.exponential(3, num_ops),
        "matmul_dtypes": ["bf16"] * num_ops,
        "vector_flops": rng.exponential(1, num_ops),
        "transcendentals": np.zeros(num_ops),
        "total_bytes": 10 * slow_bytes,
        "counts": np.ones(num_ops),
    }

    def seconds(**changes):
        faster = machine.replace(**changes)
        model = latency.roofline(faster, **work)
        return run(model, copies, slow_bytes=slow_bytes, accelerator=faster).latency_s

    before = seconds() * (1 + 1e-12)
    sweep = [seconds(slow_bandwidth_bytes_per_s=rate) for rate in (1, 1.3, 2, 5, 50)]
    assert (np.diff(sweep) <= 1e-9).all()
    assert sweep[-1] < sweep[0]
    assert seconds(fast_bandwidth_bytes_per_s=2000.0) <= before
    assert seconds(peak_flops_per_s={"bf16": 2.0}) <= before
    assert seconds(dma_full_duplex=True) <= before
    assert seconds(dma_latency_s=0.1) >= before / (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_fewer_smaller_or_later_due_copies_never_raise_latency(seed):
    model, slow_bytes, copies = random_case(seed)
    before = run(model, copies, slow_bytes=slow_bytes).latency_s * (1 + 1e-12)
    for k, copy in enumerate(copies):
        rest = copies[:k] + copies[k + 1 :]
        smaller = copy._replace(size_bytes=copy.size_bytes // 2)
        for fewer in (rest, [*rest, smaller]):
            assert run(model, fewer, slow_bytes=slow_bytes).latency_s <= before
    last = len(model.base_s)
    relaxed = [copy._replace(done=last) for copy in copies]
    assert run(model, relaxed, slow_bytes=slow_bytes).latency_s <= before
