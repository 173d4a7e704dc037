"""The arithmetic of training on many hosts, against numbers worked by hand."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

import scaling_jobs
import scaling_model
import scaling_tables
from jax_malloc.agent import learner, parallel, trainer
from jax_malloc.agent.config import TrainConfig
from jax_malloc.agent.network import MuZeroNetwork, NetworkConfig
from scaling_model import Length, Link

LINK = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-5)
# Half of the iterations play short programs, a quarter each the longer ones.
LENGTHS = [
    Length(share=0.25, moves=300, own_s=4.0),
    Length(share=0.5, moves=100, own_s=1.0),
    Length(share=0.25, moves=200, own_s=2.0),
]


@pytest.mark.parametrize(
    ("hosts", "seconds"),
    [
        (1, 0.0),
        (2, 1e-3 + 2e-5),  # the bytes once, in two steps
        (4, 1.5e-3 + 6e-5),
    ],
)
def test_ring_all_reduce(hosts, seconds):
    found = scaling_model.ring_all_reduce_s(1_000_000, hosts, LINK)
    assert found == pytest.approx(seconds)


def test_slowest_of_one_host_is_the_mean():
    assert scaling_model.slowest_s(LENGTHS, 1) == pytest.approx(2.0)


def test_slowest_of_two_hosts():
    # Both short: 1/4; neither long, not both short: 9/16 - 1/4; else long: 7/16.
    expected_s = 0.25 * 1.0 + (9 / 16 - 1 / 4) * 2.0 + 7 / 16 * 4.0
    assert scaling_model.slowest_s(LENGTHS, 2) == pytest.approx(expected_s)


def test_slowest_of_many_hosts_is_the_longest():
    assert scaling_model.slowest_s(LENGTHS, 1000) == pytest.approx(4.0)


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
        "flat": {"arrays": 1, "size_bytes": 1_000_000, "s": 0.01},
        "tree": {"arrays": 2, "size_bytes": 1_000_000, "s": 0.05},
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
    assert table.rows[0] == ("moves", "400", "400")
    assert table.rows[-2:] == [("moves/s", "100", "100"), ("efficiency", "", "50%")]
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
    # 1 MB in two steps.
    own_s = 9 / 16 * 1.0 + 7 / 16 * 3.0
    sum_s = 10 * (1e-3 + 2e-5)
    rate = 2 * 175 / (own_s + 0.2 + sum_s)
    alone = 175 / (1.5 + 10 * 0.04)
    first, together, grown = table.rows
    assert first[1:] == [
        "2",
        f"{own_s:.3f}",
        "0.200",
        f"{sum_s:.3f}",
        f"{own_s + 0.2 + sum_s:.3f}",
        f"{rate:,.0f}",
        f"{rate / (2 * alone):.0%}",
    ]
    assert together[1:5] == ["2", "1.500", "0.200", f"{sum_s:.3f}"]
    assert grown[1:5] == ["2", "1.500", "0.400", f"{sum_s:.3f}"]


def test_check_adds_compute_and_all_reduce():
    rows = scaling_tables.check(ONE, [TWO, TWO], 16, 10).rows
    assert rows[0] == ["update", "0.0300", "0.0300"]
    assert rows[1] == ["iteration", "3.3000", "4.0000"]


def test_an_update_sums_its_gradients_as_one_array():
    config = TrainConfig(
        updates=2, unroll=1, batch=2, network=NetworkConfig(hidden=8, latent=4)
    )
    network = MuZeroNetwork(config.network)
    params, opt_state, *_ = trainer.fresh(config, network)
    text = learner.update.lower(
        config,
        network,
        parallel.own_devices(),
        params,
        opt_state,
        scaling_jobs.random_rows(config, 2),
        jnp.float32(1e-3),
    ).as_text()
    assert text.count("stablehlo.all_reduce") == 1


def test_tables_fit_80_columns():
    two = [TWO, TWO]
    tables = [
        scaling_tables.one_process(ONE),
        scaling_tables.two_processes(ONE, two, shared=False),
        scaling_tables.all_reduces(two),
        scaling_tables.predictions(
            ONE, two, hosts=[2], batch=16, updates=10, link=LINK
        ),
    ]
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    for table in tables:
        console.print(table.rich())
    lines = [line.split() for line in console.export_text().splitlines()]
    for table in tables:
        for cells in (table.headings, *table.rows):
            assert " ".join(cells).split() in lines


def test_clocks_add_up_and_are_taken_away():
    seconds: dict[str, float] = {}
    before = scaling_jobs.self_play.play
    with scaling_jobs.clocks(seconds):
        assert scaling_jobs.parallel.agree(2.5) == 2.5
    assert seconds["waiting_s"] >= 0
    assert set(seconds) == set(scaling_tables._PARTS) - {"updates_s"}
    assert scaling_jobs.self_play.play is before
    assert np.isfinite(list(seconds.values())).all()
