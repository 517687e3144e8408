"""The site in headless Chromium: no errors, tables sort and filter by keyboard, it fits a phone, axe finds no fault.

Skipped where there is no Chromium or no playwright. axe-core comes from ``AXE_CORE`` (a path to axe.min.js) or from
``npm pack``; without either that test alone is skipped.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages import site_fixture

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright drives the browser: pip install playwright"
)
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
AXE_VERSION = "4.14.1"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
]
PAGES = ("index.html", "task-drums.html", "run-cnn4_wide-seed1.html", "published.html", "provenance.html")
DESKTOP, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        yield site_fixture.write_all(tmp_path_factory.mktemp("browser"), patch)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, site: Path) -> Iterator[Any]:
    """A function that opens a page of the site; at the end nothing may have been wrong with any."""
    contexts, wrong = [], []

    def open_page(name: str, viewport: dict[str, int] = DESKTOP, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on(
            "console",
            lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url))
        page.on(
            "request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None
        )
        page.goto((site / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def column(page: Any, caption: str, place: int) -> list[str]:
    """Return the sort keys of a column's visible rows."""
    found = page.evaluate(
        """([caption, place]) => [...document.querySelectorAll('table')]
            .find((table) => table.caption.textContent === caption)
            .querySelectorAll("tbody tr:not([hidden])")
            .values().map((row) => row.cells[place].dataset.key).toArray()""",
        [caption, place],
    )
    return [str(key) for key in found]


def test_tables_sort_by_keyboard_and_say_so(opened: Any) -> None:
    page = opened("task-drums.html")
    table = page.locator("table", has=page.locator("caption", has_text="Scores of every run"))
    button = table.locator("th button", has_text="score, %")
    heading = button.locator("..")
    before = column(page, "Scores of every run", 3)
    assert heading.get_attribute("aria-sort") == "none"
    button.focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, "Scores of every run", 3) == sorted(before, key=float, reverse=True) != before
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, "Scores of every run", 3) == sorted(before, key=float)
    table.locator("th button", has_text="role").click()
    assert heading.get_attribute("aria-sort") == "none"
    roles = column(page, "Scores of every run", 1)
    assert roles == sorted(roles)
    assert len(set(roles)) > 3


def test_empty_cells_stay_last_whichever_way(opened: Any) -> None:
    page = opened("index.html")
    caption = "Scores and costs of every model"
    button = page.locator("table", has=page.locator("caption", has_text=caption)).locator(
        "th button", has_text="M MACs"
    )
    place = page.locator(f"table:has(caption:text('{caption}')) thead th").all_text_contents().index("M MACs")
    for _ in range(2):
        button.click()
        keys = column(page, caption, place)
        filled = [key for key in keys if key]
        assert keys == filled + [""] * (len(keys) - len(filled))
        assert 0 < len(filled) < len(keys)


def test_filters_choose_rows_and_announce_how_many(opened: Any) -> None:
    page = opened("task-drums.html")
    everything = len(column(page, "Scores of every run", 0))
    page.get_by_label("role in Scores of every run").select_option("student, int8")
    assert set(column(page, "Scores of every run", 1)) == {"student, int8"}
    page.get_by_label("Filter Scores of every run").fill("micronet knn-nothing")
    assert column(page, "Scores of every run", 0) == []
    page.get_by_label("Filter Scores of every run").fill("micronet k-nn")
    assert column(page, "Scores of every run", 0) == ["micronet_m0-seed1"]
    assert f"1 of {everything} rows" in page.locator("#scores [role=status]").text_content()


def test_the_pareto_plot_switches_cost_and_leads_to_runs(opened: Any) -> None:
    page = opened("index.html")
    shown = page.locator("#pareto figure:visible")
    assert shown.count() == 1
    assert "MACs" in shown.locator("figcaption").text_content()
    page.get_by_label("cost", exact=True).select_option(label="file, KB")
    assert shown.count() == 1
    assert "file, KB" in shown.locator("figcaption").text_content()
    assert shown.locator("a[href='run-micronet_m0-seed1.html']").count() >= 1
    shown.locator("a[href='run-micronet_m0-seed1.html']").first.click()
    assert page.locator("h1").text_content().startswith("micronet_m0-seed1")


def test_maps_are_linked(opened: Any) -> None:
    page = opened("task-drums.html")
    assert page.locator(".panels svg").count() == 3
    page.locator(".panels svg").first.locator("circle").nth(7).dispatch_event("pointerover")
    assert (
        page.locator(".panels circle.same").evaluate_all("all => all.map(one => one.dataset.i)") == ["7"] * 3
    )
    page.get_by_role("button", name="snare").press("Enter")
    assert page.locator(".panels circle.on").count() == 60


@pytest.mark.parametrize("name", PAGES)
def test_it_fits_a_phone_in_the_dark(opened: Any, name: str) -> None:
    page = opened(name, PHONE, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(21, 24, 28)"
    sizes = page.locator("svg:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().height)"
    )
    assert all(size > 100 for size in sizes)


def test_without_scripts_everything_is_there(opened: Any, browser: Any) -> None:
    page = opened("index.html", java_script_enabled=False)
    assert page.locator("table").count() >= 3
    page.locator("#pareto details summary").click()
    assert page.locator("#pareto figure:visible").count() > 3
    assert page.locator("th button").count() == 0


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("AXE_CORE")
    if given:
        return Path(given).read_text(encoding="utf-8")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core: set AXE_CORE to axe.min.js, or install npm")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(
        [npm, "pack", "--silent", f"axe-core@{AXE_VERSION}"], cwd=folder, capture_output=True, timeout=90, check=False
    )  # fmt: skip
    if packed.returncode != 0:
        pytest.skip(f"axe-core cannot be packed: {packed.stderr.decode(errors='replace')[-200:]}")
    archive = io.BytesIO(next(folder.glob("axe-core-*.tgz")).read_bytes())
    with tarfile.open(fileobj=archive) as opened_archive:
        member = opened_archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_fault(opened: Any, axe: str, name: str, scheme: str) -> None:
    page = opened(name, PHONE if scheme == "dark" else DESKTOP, color_scheme=scheme)
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false})")
    serious = [
        (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0]["failureSummary"])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
