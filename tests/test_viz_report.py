"""The HTML report as text, and what a notebook shows; test_viz_browser.py opens it."""

import dataclasses
import html.parser
import re
import sys

import pytest
import viz_plans


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    viz_plans.training_step().to_html(path)
    return path.read_text(encoding="utf-8")


class Addresses(html.parser.HTMLParser):
    """What a page would load: the sources and links of its tags."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]


def test_the_report_loads_nothing(page):
    parser = Addresses()
    parser.feed(page)
    assert parser.found == []


def test_the_report_is_small(page):
    assert len(page.encode()) < 3e6


def test_the_report_has_the_summary_and_the_scopes(page):
    plan = viz_plans.training_step()
    assert f"plan of &#39;{plan.program.name}&#39;" in page
    assert "predicted latency" in page
    assert 'data-find="jit(step)/transpose(jvp())/"' in page
    assert f'data-find="{plan.program.ops[0].name}"' in page


def test_names_cannot_break_the_page(tmp_path):
    plan = viz_plans.waiting()
    evil = "</script><script>alert(1)</script>"
    ops = [dataclasses.replace(op, op_name=f"{evil}/dot") for op in plan.program.ops]
    program = dataclasses.replace(plan.program, name=evil, ops=tuple(ops))
    viz_plans.by_hand(program, plan.mapping).to_html(tmp_path / "report.html")
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


def test_a_plan_of_nothing_has_a_report(tmp_path):
    plan = viz_plans.waiting()
    empty = dataclasses.replace(plan.mapping, segments=(), copies=())
    plan.with_mapping(empty).to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").exists()


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "nowhere" / "report.html"
    with pytest.raises(OSError, match=r"cannot be written.*nowhere/report\.html"):
        viz_plans.waiting().to_html(path)
    with pytest.raises(OSError, match="cannot be written"):
        viz_plans.waiting().to_html(tmp_path)  # a folder


def test_without_bokeh_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(RuntimeError, match=r"to_html needs bokeh.*jax_malloc\[viz\]"):
        viz_plans.waiting().to_html(tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_notebook_shows_summary_map_and_link(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plan = viz_plans.training_step()
    shown = plan._repr_html_()
    assert "predicted latency" in shown
    assert 'src="data:image/png;base64,iVBOR' in shown
    assert len(shown) < 200_000
    target = re.search(r'<a href="([^"]+)"', shown)[1]
    report = tmp_path / target
    assert report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    written = report.stat().st_mtime_ns
    assert plan._repr_html_() == shown
    assert report.stat().st_mtime_ns == written  # not written again


def test_a_notebook_without_the_extra_still_shows_the_summary(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shown = viz_plans.training_step()._repr_html_()
    assert "predicted latency" in shown
    assert "pip install" in shown
    assert not any(tmp_path.iterdir())


def test_a_notebook_in_a_folder_that_cannot_be_written_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jax_malloc_reports").write_text("a file where the folder would be")
    shown = viz_plans.training_step()._repr_html_()
    assert "no full report" in shown
    assert "predicted latency" in shown
