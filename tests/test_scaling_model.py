"""The arithmetic of training on many hosts, against numbers worked by hand."""

import numpy as np
import pytest

import scaling_jobs
import scaling_model
import scaling_tables
from scaling_model import Length, Link

LINK = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-5)
# Half of the iterations play short programs, a quarter each the longer ones.
LENGTHS = [
    Length(share=0.25, moves=300, own_s=4.0),
    Length(share=0.5, moves=100, own_s=1.0),
    Length(share=0.25, moves=200, own_s=2.0),
]


@pytest.mark.parametrize(
    ("hosts", "messages", "seconds"),
    [
        (1, 5, 0.0),
        (2, 1, 1e-3 + 2e-5),  # the bytes once, in two steps
        (4, 1, 1.5e-3 + 6e-5),
        (4, 10, 1.5e-3 + 60e-5),
    ],
)
def test_ring_all_reduce(hosts, messages, seconds):
    found = scaling_model.ring_all_reduce_s(1_000_000, hosts, LINK, messages)
    assert found == pytest.approx(seconds)


def test_slowest_of_one_host_is_the_mean():
    assert scaling_model.slowest_s(LENGTHS, 1) == pytest.approx(2.0)


def test_slowest_of_two_hosts():
    # Both short: 1/4; neither long, not both short: 9/16 - 1/4; else long: 7/16.
    expected_s = 0.25 * 1.0 + (9 / 16 - 1 / 4) * 2.0 + 7 / 16 * 4.0
    assert scaling_model.slowest_s(LENGTHS, 2) == pytest.approx(expected_s)


def test_slowest_of_many_hosts_is_the_longest():
    assert scaling_model.slowest_s(LENGTHS, 1000) == pytest.approx(4.0)


def test_predict():
    found = scaling_model.predict(
        LENGTHS,
        hosts=10,
        updates=40,
        update_s=0.05,
        all_reduce_s=0.025,
        drawn_together=True,
    )
    assert found.own_s == pytest.approx(2.0)
    assert found.compute_s == pytest.approx(2.0)
    assert found.all_reduce_s == pytest.approx(1.0)
    assert found.iteration_s == pytest.approx(5.0)
    assert found.moves_per_s == pytest.approx(10 * 175 / 5)


def test_predict_waits_for_the_longest_of_separate_draws():
    found = scaling_model.predict(
        LENGTHS, hosts=2, updates=1, update_s=0.0, all_reduce_s=0.0
    )
    assert found.own_s == pytest.approx(2.625)
    assert found.moves_per_s == pytest.approx(2 * 175 / 2.625)


def measured(seeds, own_s, moves):
    """What one process finds of programs of one length; updates take a second."""
    parts = dict.fromkeys(scaling_tables._PARTS, 0.0)
    iteration = {**parts, "updates_s": 1.0, "iteration_s": own_s + 1, "moves": moves}
    return {"seeds": seeds, "iterations": [iteration]}


ONE = {
    "lengths": {"128": measured([0, 1, 2], 1.0, 100), "256": measured([3], 3.0, 400)},
    "update_s": {"8": 0.02, "16": 0.04},
    "all_reduce": {},
}
TWO = {
    "lengths": {"256": measured([3], 3.0, 200)},
    "update_s": {"8": 0.03, "16": 0.05},
    "all_reduce": {
        "update": {"arrays": 3, "size_bytes": 2_000_000, "s": 0.01},
        "params": {"arrays": 2, "size_bytes": 1_000_000, "s": 0.005},
        "flat": {"arrays": 1, "size_bytes": 1_000_000, "s": 0.001},
    },
}


def test_lengths_weigh_by_their_programs():
    assert scaling_tables.lengths_of(ONE) == [
        Length(share=0.75, moves=100, own_s=1.0),
        Length(share=0.25, moves=400, own_s=3.0),
    ]


def test_efficiency_of_two_processes_is_over_twice_one():
    table = scaling_tables.two_processes(ONE, [TWO, TWO], shared=False)
    assert "ONE CORE" not in table.text
    assert table.rows[0][-2:] == ["100", ""]
    assert table.rows[1][-2:] == ["100", "50%"]
    table = scaling_tables.two_processes(ONE, [TWO, TWO], shared=True)
    assert "ONE CORE" in table.text


def test_efficiency_of_updates():
    rows = scaling_tables.updates(ONE, [TWO, TWO], 16).rows
    assert [row[-1] for row in rows] == ["100%", "100%", "80%", "67%"]


def test_predictions_by_hand():
    table = scaling_tables.predictions(
        ONE, [TWO, TWO], hosts=[2], batch=16, updates=10, link=LINK
    )
    # Own work of two: 9/16 of the pairs are both short. 10 updates of 0.02 s, and their
    # 2 MB in two steps of each of three messages.
    own_s = 9 / 16 * 1.0 + 7 / 16 * 3.0
    sum_s = 10 * (2e-3 + 3 * 2e-5)
    rate = 2 * 175 / (own_s + 0.2 + sum_s)
    alone = 175 / (1.5 + 10 * 0.04)
    first, *_, last = table.rows
    assert first[1:] == [
        "2",
        "8",
        f"{own_s:.3f}",
        "0.200",
        f"{sum_s:.3f}",
        f"{own_s + 0.2 + sum_s:.3f}",
        f"{rate:,.0f}",
        f"{rate / (2 * alone):.0%}",
    ]
    assert last[1:5] == ["2", "16", "1.500", "0.400"]


def test_check_adds_compute_and_all_reduce():
    rows = scaling_tables.check(ONE, [TWO, TWO], 16, 10).rows
    assert rows[0] == ["update", "0.0300", "0.0300"]
    assert rows[1] == ["iteration", "3.3000", "4.0000"]


def test_arrays_of_all_reduces_are_read_from_hlo():
    text = """
  ROOT %all-reduce.1 = (f32[256]{0}, f32[41,64]{1,0}, /*index=2*/f32[]) all-reduce(%a)
  %all-reduce.2 = f32[3]{0} all-reduce(%b), to_apply=%sum
  %get = f32[256]{0} get-tuple-element(%all-reduce.1), index=0
"""
    shapes = [x.shape for x in scaling_jobs.all_reduced(text)]
    assert shapes == [(256,), (41, 64), (), (3,)]


def test_clocks_add_up_and_are_taken_away():
    seconds: dict[str, float] = {}
    before = scaling_jobs.self_play.play
    with scaling_jobs.clocks(seconds):
        assert scaling_jobs.parallel.agree(2.5) == 2.5
    assert seconds["waiting_s"] >= 0
    assert set(seconds) == set(scaling_tables._PARTS) - {"updates_s"}
    assert scaling_jobs.self_play.play is before
    assert np.isfinite(list(seconds.values())).all()
