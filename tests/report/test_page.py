"""The page as a reader has it: in a real browser, from a file, without a network."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tasks.report import figures, page, report
from tasks.report.classes import Classes
from tasks.report.figures import NAMES
from tasks.report.provenance import Command, Provenance
from tasks.report.report import Written
from tasks.report.vectors import Missing, Vectors
from tests.report import synthetic

pytestmark = pytest.mark.slow

MADE = Provenance((Command("chronomerge grid", "runs it"),), ("0123456789ab",), {"torch": "2"}, ("cpu, 2 threads",))
TECHNIQUES, SEEDS, STEPS = ("linear", "ties"), 2, 4
STATES = (7 * len(TECHNIQUES) + 1 + 1) * SEEDS * (STEPS + 1) + SEEDS * 2  # cells, no-replay, and multitask's two


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    table = synthetic.with_fit(synthetic.with_heads(synthetic.table(TECHNIQUES, SEEDS, STEPS)))
    table = synthetic.with_routes(synthetic.with_galleries(table))
    return report.write(table, synthetic.vectors(STEPS), MADE, tmp_path_factory.mktemp("report"))


@dataclass
class Opened:
    """A page, and whatever it complained about or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def opened(browser: Browser, written: Written) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    found = Opened(context.new_page())
    found.page.set_default_timeout(60_000)
    found.page.on("console", lambda message: found.complaints.append(message.text))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(written.page.as_uri())
    drawn(found.page)
    yield found
    context.close()


SMALLEST_LETTERS = """Math.min(...[...document.querySelectorAll("svg.marks text")].filter((text) => text.innerHTML).map(
  (text) => parseFloat(getComputedStyle(text).fontSize)
    * text.ownerSVGElement.getBoundingClientRect().width / text.ownerSVGElement.viewBox.baseVal.width))"""
"""The font size of the smallest letters in any chart, in pixels of the window."""


def drawn(page: Page) -> None:
    """Wait until every chart is there."""
    page.wait_for_function("views.size === Object.keys(charts).length")


def test_every_figure_is_drawn_without_a_complaint_or_a_request(opened: Opened, written: Written) -> None:
    for name in NAMES:
        marks = opened.page.locator(f"#{name} .chart svg [role=graphics-symbol]").count()
        assert marks > 5, name
    assert opened.complaints == []
    assert opened.requests == [written.page.as_uri()]


def test_tooltips_say_what_a_point_is(opened: Opened) -> None:
    point = opened.page.locator("#over-time .mark-symbol path[aria-label*='ema + ema, ties']").last
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    tip = opened.page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "arrival" in tip.inner_text()


def visible(page: Page) -> int:
    return page.locator("#states tbody tr:visible").count()


def test_the_table_filters(opened: Opened) -> None:
    page = opened.page
    page.locator("#last").uncheck()
    assert visible(page) == STATES
    assert page.locator("#count").inner_text() == f"{STATES} of {STATES}"
    page.locator("#filter").fill("EMA ties 0003")
    assert visible(page) == 5 * SEEDS  # ft+ema, zs+ema, ema+ft, ema+ema, ema+all
    page.locator("#filter").fill("nothing like that")
    assert visible(page) == 0
    page.locator("#filter").fill("")
    page.locator("#last").check()
    assert visible(page) == (7 * len(TECHNIQUES) + 1 + 2) * SEEDS


def column(page: Page, title: str) -> list[str]:
    index = page.locator("#states thead button").all_inner_texts().index(title) + 1
    return page.locator(f"#states tbody tr > :nth-child({index})").all_text_contents()


def test_the_table_sorts_numbers_and_names_either_way(opened: Opened) -> None:
    page = opened.page
    for title, order in (("A_KA", [False, True]), ("BWT", [False, True])):
        for descending in order:
            page.get_by_role("button", name=title, exact=True).click()
            shown = [text.replace("−", "-") for text in column(page, title)]
            numbers = [float(text) for text in shown if text]
            assert numbers == sorted(numbers, reverse=descending)
            assert "" not in shown[: len(numbers)]  # what is missing comes last
    header = page.locator("#states th", has=page.get_by_role("button", name="state", exact=True))
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, "state") == sorted(column(page, "state"))


def faint(page: Page, figure: str) -> int:
    """Points of a figure that are next to invisible."""
    return page.evaluate(
        "name => [...document.querySelectorAll(`#${name} .mark-symbol path[aria-label*=cell]`)]"
        ".filter((mark) => Number(mark.getAttribute('opacity')) < 0.1).length",
        figure,
    )


def test_a_legend_toggles_series_in_every_figure_that_has_it(opened: Opened) -> None:
    page = opened.page
    entry = page.locator("#over-time .role-legend-label text", has_text="zs").first
    assert (faint(page, "over-time"), faint(page, "plane")) == (0, 0)
    entry.click(force=True)
    page.wait_for_function("document.querySelectorAll('#plane .mark-symbol path[opacity=\"0.06\"]').length > 0")
    points = 6 * (STEPS + 1)  # of the six protocols that do not start at zs
    assert faint(page, "over-time") == 2 * points
    entry.click(force=True)
    page.wait_for_function("document.querySelectorAll('#plane .mark-symbol path[opacity=\"0.06\"]').length === 0")
    assert faint(page, "over-time") == 0


def test_a_choice_holds_for_every_figure(opened: Opened) -> None:
    page = opened.page
    page.locator("#plane select[data-parameter=technique]").select_option("linear")
    assert page.locator("#over-time select[data-parameter=technique]").input_value() == "linear"
    page.wait_for_selector("#over-time .mark-symbol path[aria-label*='ema + ema, linear']", state="attached")
    assert page.locator("#over-time .mark-symbol path[aria-label*='ema + ema, ties']").count() == 0
    assert page.locator("#over-time .mark-symbol path[aria-label*='ft + ft']").count() > 0  # belongs to each


def test_a_phone_has_all_of_it_in_its_width(opened: Opened) -> None:
    page = opened.page
    page.locator("#plane select[data-parameter=technique]").select_option("linear")
    wide = page.locator("#over-time svg.marks").bounding_box()
    assert wide
    page.set_viewport_size({"width": 390, "height": 844})
    # The panels stand one below another.
    page.wait_for_function(f"document.querySelector('#over-time svg.marks').clientHeight > {1.5 * wide['height']}")
    page.wait_for_function("[...document.querySelectorAll('svg.marks')].every((svg) => svg.width.baseVal.value <= 390)")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.wait_for_function(f"{SMALLEST_LETTERS} >= 9")  # once every chart has been fitted
    assert page.locator(".scroll-hint").is_visible()  # the table goes on at the right
    page.wait_for_selector(
        "#over-time .mark-symbol path[aria-label*='ema + ema, linear']", state="attached"
    )  # as chosen
    assert opened.complaints == []


def test_files_of_a_report(written: Written) -> None:
    names = {path.name for path in written.figures}
    assert names == {f"{name}.{kind}" for name in NAMES for kind in ("svg", "png")}
    for path in written.figures:
        content = path.read_bytes()
        assert content.startswith(b"<svg" if path.suffix == ".svg" else b"\x89PNG"), path
    assert all(path.exists() for path in written.tables)


def test_a_report_takes_the_place_of_another(tmp_path: Path) -> None:
    """What it has no figure for is gone; what is not ours stays; and the same again is the same bytes."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "protocols-techniques.svg").write_text("of an earlier report")
    (tmp_path / "figures" / "mine.svg").write_text("mine")
    table = synthetic.table(("linear",), 1, 2, ("ema+ema",), with_references=False)
    table = table[table["step"] == 0]  # two figures are enough
    first = report.write(table, Vectors(), MADE, tmp_path)
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"steps-datasets", "time-and-bytes", "mine"}
    before = {path: path.read_bytes() for path in (first.page, *first.tables, *first.figures)}
    report.write(table, Vectors(), MADE, tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_a_full_disk_leaves_no_half_of_a_report_and_an_earlier_one_as_it_was(tmp_path: Path) -> None:
    table = synthetic.table(("linear",), 1, 2, ("ema+ema",), with_references=False)
    table = table[table["step"] == 0]
    report.write(table, Vectors(), MADE, tmp_path / "before")
    files = [path for path in (tmp_path / "before").rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(len(content) for content, _ in before.values())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, hard))
    try:
        for folder in ("before", "new"):
            with pytest.raises(OSError, match="File too large"):
                report.write(table, Vectors(), MADE, tmp_path / folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "new").exists()
    assert {path for path in (tmp_path / "before").rglob("*") if path.is_file()} == before.keys()
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before


def test_a_page_names_what_it_lacks_and_lets_no_name_out_of_its_place() -> None:
    table = synthetic.table(("</script><b>",), 1, 2, ("ema+ema",), with_references=False)
    missing = (Missing("demo", "the experts of state 1 are not here", "chronomerge restore 1"),)
    html = page.build(table, figures.draw(table, Vectors()), missing, MADE, Classes())
    assert "<code>chronomerge restore 1</code>" in html
    assert "</script><b>" not in html
    assert html.count("</script>") == html.count("<script")


def test_a_chart_of_a_narrow_window_fits_a_printed_page(opened: Opened) -> None:
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("Object.values(charts).length && document.querySelector('#over-time svg').clientWidth < 390")
    tall = "[...document.querySelectorAll('.chart svg.marks')].map((one) => one.getBoundingClientRect().height)"
    assert max(page.evaluate(tall)) > 600
    page.emulate_media(media="print")
    assert max(page.evaluate(tall)) <= 140 / 25.4 * 96 + 1  # of the 186 mm of a page
    page.emulate_media(media="screen")


def test_each_printed_page_of_the_table_has_the_names_of_its_columns(opened: Opened) -> None:
    """Chromium repeats the text of a header on every page, but no button."""
    opened.page.emulate_media(media="print")
    shown = "[...document.querySelectorAll('thead th button')].map((one) => getComputedStyle(one).display)"
    assert set(opened.page.evaluate(shown)) == {"contents"}
    opened.page.emulate_media(media="screen")
