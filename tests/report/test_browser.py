"""Reports in a real browser, the system's Chromium or PROMPTVIT_CHROMIUM: driven by Playwright, judged by axe-core."""

import os
import shutil
from pathlib import Path

import pytest
from tests.report.conftest import analyse

from promptvit.report.run import write_run_report
from promptvit.report.study import write_study_report

pytestmark = pytest.mark.browser
OPTIONS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE, PAPER = {"width": 1280, "height": 900}, {"width": 360, "height": 780}, {"width": 690, "height": 1000}
VIEWS = {
    "light": (DESKTOP, "light"),
    "dark": (DESKTOP, "dark"),
    "phone": (PHONE, "light"),
    "dark phone": (PHONE, "dark"),
}
SVG_SIZES = "[...document.querySelectorAll('svg')].map(each => { const {width, height} = each.getBoundingClientRect();"
SVG_SIZES += " return [width, height, each.closest('details:not([open])') !== null] })"


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("PROMPTVIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no chromium on this machine: install it, or name it in PROMPTVIT_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    running = playwright.chromium.launch(executable_path=found, args=OPTIONS, chromium_sandbox=os.geteuid() != 0)
    yield running
    running.close()
    playwright.stop()


@pytest.fixture(scope="module")
def axe() -> str:
    package = pytest.importorskip("axe_core_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text()


@pytest.fixture
def show(browser):
    """Opens a page; raises at the end if it logged or failed anything, or asked for more than itself."""
    contexts, told = [], []

    def open_page(path, view="light", **options):
        size, scheme = VIEWS[view]
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if not is_own(request.url, path) else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert told == []


def is_own(url: str, path: Path) -> bool:
    return url.startswith("data:") or url.partition("#")[0] == path.as_uri()


@pytest.fixture(params=["run", "analysed run", "one epoch", "fifty classes", "study", "half a study", "one cell"])
def report(request, make_run, make_study, tmp_path) -> Path:
    if request.param == "run":
        return write_run_report(make_run())
    if request.param == "analysed run":
        return write_run_report(analyse(make_run()))
    if request.param == "one epoch":
        return write_run_report(make_run(classes=2, epochs=1, right=1.0))
    if request.param == "fifty classes":
        return write_run_report(make_run(classes=50))
    if request.param == "study":
        return write_study_report(tmp_path, make_study())
    if request.param == "half a study":
        return write_study_report(tmp_path, make_study(done=0.5, backbones=2, settings=3))
    return write_study_report(tmp_path, make_study(tasks=1, methods=1, settings=1, seeds=1))


@pytest.mark.parametrize("view", list(VIEWS))
def test_nothing_is_in_the_way_of_a_reader(show, axe, report, view):
    page = show(report, view)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= VIEWS[view][0]["width"]
    assert all(width > 0 and height > 0 for width, height, _ in page.evaluate(SVG_SIZES))
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(result => result.violations)")
    grave = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in grave] == []


def test_the_keyboard_reaches_everything(show, make_run):
    page = show(write_run_report(make_run()))
    wanted = page.evaluate(
        "[...document.querySelectorAll('a, button, summary, [tabindex=\"0\"]')]"
        ".filter(each => each.checkVisibility({contentVisibilityAuto: true})).length"
    )
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        if len(reached) == 1:
            assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
            assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert len(reached) == wanted


def test_tables_are_sorted_both_ways_by_keyboard(show, make_run):
    page = show(write_run_report(make_run()))
    table = page.locator("table[aria-label*='images are wrong']")
    sorter = table.get_by_role("button", name="images")

    def column() -> list[int]:
        return [int(each) for each in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]

    counts = sorted(column())
    sorter.press("Enter")
    assert column() == counts[::-1]
    sorter.press("Enter")
    assert column() == counts
    assert table.locator("th[aria-sort=ascending]").count() == 1


def test_the_theme_can_be_turned(show, make_run):
    page = show(write_run_report(make_run()), "dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(ground) == "rgb(255, 255, 255)" != dark
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(ground) == dark


def test_a_page_without_script_is_complete(show, make_run):
    page = show(write_run_report(make_run()), java_script_enabled=False)
    assert page.get_by_role("heading", name="How it was made").is_visible()
    assert page.locator("#theme").is_hidden()
    assert page.locator("th button").count() == 0


def test_paper_gets_light_colours_and_all_that_is_folded(show, report):
    page = show(report, "dark")
    page.set_viewport_size(PAPER)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= PAPER["width"]
    assert all(width > 0 and height > 0 for width, height, _ in page.evaluate(SVG_SIZES))
    right = "Math.max(...[...document.querySelectorAll('svg')].map(each => each.getBoundingClientRect().right))"
    assert page.evaluate(right) <= PAPER["width"]
    folded = (
        "[...document.querySelectorAll('details:not([open]) table')].map(each => each.getBoundingClientRect().height)"
    )
    assert all(height > 0 for height in page.evaluate(folded))
    assert page.pdf(format="A4").startswith(b"%PDF")
