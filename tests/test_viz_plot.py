"""Pictures by matplotlib: what is drawn where, at 50 and at 5,000 buffers."""

import sys

import matplotlib
import numpy as np
import pytest
import viz_plans

import jax_malloc
from jax_malloc.viz import palette, plot
from jax_malloc.viz.tables import Kind

matplotlib.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def boxes(ax, gid):
    """`[N, 4]` left, right, bottom and top of a collection's rectangles."""
    (found,) = [c for c in ax.collections if c.get_gid() == gid]
    corners = np.array([path.vertices[:4] for path in found.get_paths()])
    low, high = corners.min(1), corners.max(1)
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)


def test_a_rectangle_is_a_stay():
    ax = viz_plans.waiting().plot()
    kib = 1 / 1024
    np.testing.assert_allclose(
        boxes(ax, "stays"),
        [[0, 10e6, 0, kib], [9e6, 10e6, 2 * kib, 10 * kib]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        boxes(ax, "arriving"), [[0, 9e6, 2 * kib, 10 * kib]], rtol=1e-6
    )
    assert ax.get_xlabel() == "time (µs, predicted)"


def test_copies_stalls_and_bounds_have_their_marks():
    ax = viz_plans.waiting().plot()
    top, bottom = 16 / 1024, 0
    np.testing.assert_allclose(boxes(ax, "stalls"), [[5e6, 9e6, bottom, top]])
    np.testing.assert_allclose(boxes(ax, "copies in")[:, :2], [[0, 9e6]])
    np.testing.assert_allclose(
        boxes(ax, "slow memory")[:, :2], [[9e6, 10e6]], rtol=1e-6
    )
    for lane in ("copies in", "slow memory", "ops"):
        assert (boxes(ax, lane)[:, 3] <= 0).all()  # below the map
    words = {text.get_text() for text in ax.get_legend().get_texts()}
    assert words >= {"parameter", "activation", "copy in", "stall", "op: slow memory"}
    assert "output" not in words  # it is in slow memory


def test_the_colours_are_those_of_the_kinds():
    ax = viz_plans.waiting().plot()
    (stays,) = [c for c in ax.collections if c.get_gid() == "stays"]
    drawn = [matplotlib.colors.to_hex(c) for c in stays.get_facecolors()]
    kinds = (Kind.ACTIVATION, Kind.PARAMETER)
    assert drawn == [palette.KIND[kind].lower() for kind in kinds]


def test_colours_by_latency_saved_have_a_scale():
    ax = viz_plans.training_step().plot(color_by="saved")
    labels = [axes.get_ylabel() for axes in ax.figure.axes]
    assert "latency that the stay saves (µs)" in labels


def test_the_largest_rectangles_have_names():
    texts = {text.get_text() for text in viz_plans.waiting().plot().texts}
    assert "p/mlp/kernel" in texts
    assert "a" not in texts  # its rectangle is too low


@pytest.mark.parametrize("length", [50, 4600])
def test_the_number_of_artists_does_not_grow(length):
    ax = viz_plans.chain(length).plot()
    assert len(boxes(ax, "stays")) > 0.99 * length
    assert len(ax.collections) < 10
    assert len(ax.texts) <= 121
    ax.figure.canvas.draw()


def test_it_draws_into_the_axes_that_it_is_given(tmp_path):
    figure, (left, right) = plt.subplots(1, 2)
    assert viz_plans.waiting().plot(ax=left) is left
    assert left.collections
    assert not right.collections
    figure.savefig(tmp_path / "both.pdf")
    assert (tmp_path / "both.pdf").stat().st_size > 1000


def test_a_plan_without_stays_can_be_drawn():
    plan = viz_plans.waiting()
    ax = plan.with_mapping(jax_malloc.Mapping()).plot()
    ax.figure.canvas.draw()
    assert not [c for c in ax.collections if c.get_gid() == "stays"]


def test_an_unknown_colouring_is_refused():
    with pytest.raises(
        ValueError, match="color_by is 'size'; choose one of kind, saved"
    ):
        viz_plans.waiting().plot(color_by="size")


def test_the_comparison_has_a_bar_for_every_plan_and_reference():
    plan = viz_plans.training_step()
    ax = jax_malloc.plot_comparison([plan])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all_slow", "greedy", "xla"]
    parts = [[bar.get_width() for bar in container] for container in ax.containers]
    latencies_us = [
        1e6 * s
        for s in (plan.baselines["all_slow"], plan.latency_s, plan.baselines["xla"])
    ]
    np.testing.assert_allclose(np.sum(parts, 0), latencies_us)


def test_plans_of_one_solver_are_told_apart():
    one, other = viz_plans.chain(20), viz_plans.chain(30)
    ax = jax_malloc.plot_comparison([one, other, other])
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert len(names) == len(set(names)) == 5
    assert "by hand, chain_20" in names


def test_a_comparison_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no plans"):
        jax_malloc.plot_comparison([])


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    plan = viz_plans.waiting()
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match=r"pip install 'jax_malloc\[viz\]'"):
        plan.plot()
    with pytest.raises(RuntimeError, match="plot_comparison needs matplotlib"):
        jax_malloc.plot_comparison([plan])


def test_the_choices_are_listed():
    assert plot.COLOR_BY == ("kind", "saved")
