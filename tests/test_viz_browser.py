"""The report in a real Chromium: it loads, hovers, searches and selects.

Skipped where there is no Chromium; `apt-get install chromium` brings one.
"""

import os
import shutil

import pytest
import viz_plans

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium"
)
# Far above what it takes, for a loaded machine: a hang fails, slowness does not.
TIMEOUT_MS = 20_000

# A panel's view and a model by name; where a point of a panel's data is in the window;
# the middle of the rectangle of a name.
HELPERS = """() => {
  window.view = (name) =>
    [...Bokeh.index.all_views()].find((view) => view.model.name === `${name} panel`)
  window.model = (name) => Bokeh.documents[0].get_model_by_name(name)
  window.place = ([name, x, y]) => {
    const {el, frame} = view(name), box = el.getBoundingClientRect()
    return [box.x + frame.x_scale.compute(x), box.y + frame.y_scale.compute(y)]
  }
  window.middle = ([source, name, ...edges]) => {
    const row = model(source).get_array("name").indexOf(name)
    const [l, r, b, t] = edges.map((column) => model(source).get_array(column)[row])
    return [(l + r) / 2, (b + t) / 2]
  }
}"""


@pytest.fixture(scope="module")
def browser():
    # Chromium's sandbox does not start for root, whom containers run as.
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


def opened(browser, path):
    """The report in a page of its own; what it complains of and asks for is kept."""
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    page.set_default_timeout(TIMEOUT_MS)
    page.complaints, page.requests = [], []
    page.on(
        "console",
        lambda m: (
            page.complaints.append(m.text) if m.type in ("error", "warning") else 0
        ),
    )
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("window.Bokeh?.documents[0]?.is_idle")
    page.evaluate(HELPERS)
    return page


@pytest.fixture(scope="module")
def small(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "report.html"
    viz_plans.chain(50).to_html(path)
    return opened(browser, path)


@pytest.fixture(scope="module")
def large(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "report.html"
    plan = viz_plans.chain(4600)
    assert len(plan.program.buffers) > 5000
    plan.to_html(path)
    return opened(browser, path)


@pytest.fixture(params=["small", "large"])
def page(request):
    page = request.getfixturevalue(request.param)
    search(page, "")
    page.mouse.move(1, 1)
    return page


def search(page, text):
    """Types into the search box, and waits for what it says."""
    page.get_by_placeholder("search").fill(text)
    page.wait_for_function(
        "(text) => (model('count').text === '') === (text === '')", arg=text
    )


def selected(page, source):
    """The rows of a source that are selected, by name."""
    return page.evaluate(
        "(name) => { const source = model(name), names = source.get_array('name');"
        " return source.selected.indices.map((i) => names[i]) }",
        source,
    )


def middle(page, source, name, left, right, bottom, top):
    """The middle of a rectangle, given the columns with its edges."""
    return page.evaluate("middle", [source, name, left, right, bottom, top])


def stay_at(page, name):
    """A stay's middle in the window, after a zoom to it."""
    x, y = middle(page, "stays", name, "first_us", "end_us", "low_mib", "high_mib")
    page.evaluate(
        "([x, y]) => { view('map').model.x_range.setv({start: x - 5, end: x + 5});"
        " view('map').model.y_range.setv({start: y - 1, end: y + 1}) }",
        [x, y],
    )
    page.wait_for_function("Bokeh.documents[0].is_idle")
    page.wait_for_timeout(200)  # the panels are drawn on the next frames
    return page.evaluate("place", ["map", x, y])


def test_it_loads_without_complaint_and_without_network(page):
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith("file:")] == []
    assert len(page.requests) == 1


def test_hover_shows_the_buffer(page):
    page.mouse.move(*stay_at(page, "fusion.21"))
    for text in ("fusion.21", "jit(f)/layers/2/mlp/dot_general", "512.0 KiB"):
        page.locator(".bk-Tooltip").get_by_text(text).first.wait_for()


def test_hover_shows_the_op_and_its_bound(page):
    x, y = middle(page, "ops", "fusion.21", "start_us", "end_us", "stall_us", "fast_us")
    stay_at(page, "fusion.21")
    page.mouse.move(*page.evaluate("place", ["ops", x, y]))
    for text in ("fusion.21", "bound by fast memory"):
        page.locator(".bk-Tooltip").get_by_text(text).first.wait_for()


def test_search_finds_buffers_by_name_and_by_scope(page):
    search(page, "FUSION.33")
    assert "fusion.33" in selected(page, "buffers")
    assert "fusion.34" not in selected(page, "buffers")
    search(page, "layers/3/")
    # The ten results of the layer, and its weight.
    assert len(selected(page, "buffers")) == 11
    assert len(selected(page, "ops")) == 10
    assert page.evaluate("model('count').text") == "11 buffers, 10 ops"
    search(page, "no such thing")
    assert selected(page, "buffers") == selected(page, "stays") == []
    assert page.evaluate("model('count').text") == "0 buffers, 0 ops"


def test_a_row_of_the_table_selects_in_the_map(page):
    search(page, "layers/4/")
    page.locator(".slick-cell").filter(has_text="fusion.42").first.click()
    page.wait_for_function("model('stays').selected.indices.length === 1")
    assert selected(page, "stays") == ["fusion.42"]
    # The op that makes it and the one that reads it.
    assert selected(page, "ops") == ["fusion.42", "fusion.43"]


def test_a_rectangle_selects_in_the_table(page):
    page.mouse.click(*stay_at(page, "fusion.37"))
    page.wait_for_function("model('buffers').selected.indices.length === 1")
    assert selected(page, "buffers") == ["fusion.37"]
    row = page.locator(".slick-row:has(.selected)").first
    row.wait_for()  # it is scrolled to
    assert "fusion.37" in row.inner_text()


def test_an_op_selects_what_it_touches(page):
    x, y = middle(page, "ops", "fusion.19", "start_us", "end_us", "stall_us", "fast_us")
    stay_at(page, "fusion.19")
    page.mouse.click(*page.evaluate("place", ["ops", x, y]))
    page.wait_for_function("model('buffers').selected.indices.length === 3")
    assert sorted(selected(page, "buffers")) == [
        "fusion.18",
        "fusion.19",
        "params['layers']['1']['kernel']",
    ]
    assert selected(page, "ops") == ["fusion.19"]


def test_the_wheel_zooms_all_panels_together(page):
    page.mouse.move(*stay_at(page, "fusion.21"))
    page.mouse.wheel(0, -400)
    page.wait_for_function(
        "view('map').model.x_range.end - view('map').model.x_range.start < 9"
    )
    ranges = page.evaluate(
        "['map', 'ops', 'copies', 'scopes'].map((name) => view(name).model.x_range.id)"
    )
    assert len(set(ranges)) == 1


def test_a_zoom_scales_latencies_to_the_ops_in_view(page):
    # The first op reads slow memory and takes longest.
    page.evaluate(
        "() => { const row = model('ops').get_array('name').indexOf('fusion.21');"
        " const [start, end] = ['start_us', 'end_us'].map("
        "   (column) => model('ops').get_array(column)[row]);"
        " view('map').model.x_range.setv({start, end}) }"
    )
    page.wait_for_function(
        "view('ops').model.y_range.end"
        " < 0.9 * Math.max(...model('ops').get_array('latency_us'))"
    )


def test_scopes_open_close_and_search(small):
    search(small, "")
    summary = small.locator(".tree summary").filter(has_text="mlp").first
    assert not summary.is_visible()
    small.locator(".tree details > summary").filter(has_text="2 10 ops").first.click(
        position={"x": 3, "y": 5}
    )
    small.locator(".tree a[data-find='jit(f)/layers/2/']").click()
    small.wait_for_function("model('ops').selected.indices.length === 10")
    assert selected(small, "ops") == [f"fusion.{t}" for t in range(20, 30)]


def test_the_table_sorts_by_a_click_on_its_head(small):
    search(small, "")
    small.locator(".slick-header-column").filter(has_text="MiB").click()
    first = small.locator(".slick-row").first
    first.wait_for()
    assert "0.50" in first.inner_text()
