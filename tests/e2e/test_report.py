"""The report in a real browser: a reader finds every figure, sees it and reads its caption."""

import os
import shutil
import time

import anndata as ad
import pytest
from projects import REPOSITORY, make_cohort, new_project

pytestmark = pytest.mark.pipeline

PATIENTS = ("P1", "a/b c", "{patient} $x$", "</script><b>&amp;", "{{ 1/0 }} %s `x`_ |y|", "<!--")
FLAGS = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync")


#: Widths of the pictures on the page as they were loaded; the logo is one of them.
WIDTHS = "return Array.from(document.images, image => image.naturalWidth)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser with the report of a small run open."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver_path = shutil.which("chromedriver")
    if driver_path is None:
        reason = "no chromedriver: run tests/install_system_packages.sh"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    folder = tmp_path_factory.mktemp("report")
    cohort = make_cohort(PATIENTS, n_cells=40)
    tiny = cohort[:5].copy()
    tiny.obs["patient"], tiny.obs_names = "too small {x}", [f"tiny {i}" for i in range(5)]
    project = new_project(folder / "project {x} *y*", REPOSITORY, ad.concat([cohort, tiny]))
    project.configure(on_small_patient="drop")
    for arguments in ((), ("--report", "results/report.html")):
        result = project.call(*arguments)
        assert result.returncode == 0, result.stderr
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, "disable-component-update", "disable-quic", f"user-data-dir={folder / 'browser'}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    driver.set_window_size(1400, 1000)
    driver.implicitly_wait(10)
    driver.get((project.directory / "results" / "report.html").as_uri())
    yield driver
    driver.quit()


def open_category(page, name: str) -> None:
    page.refresh()
    page.find_element("xpath", f"//span[normalize-space(text())='{name}']").click()


def icons(page, name: str) -> list:
    return page.find_elements("css selector", f"a[iconname='{name}']")


@pytest.mark.parametrize(
    ("category", "labels"),
    [
        ("Cohort", ["criteria", "overview", "composition"]),
        ("Patients", list(PATIENTS)),
        ("Tables", ["scores", "selection", "diagnostics", "'too small {x}' (5 cells, min_cells is 20)"]),
    ],
)
def test_every_category_lists_its_results(page, category, labels):
    open_category(page, category)
    assert len(icons(page, "eye") or icons(page, "download")) >= len(labels)
    text = page.find_element("tag name", "body").text
    assert all(label in text for label in labels)


@pytest.mark.parametrize("category", ["Cohort", "Patients"])
def test_every_figure_is_shown(page, category):
    open_category(page, category)
    for i in range(len(icons(page, "eye"))):
        icons(page, "eye")[i].click()
        deadline = time.monotonic() + 10
        while max(page.execute_script(WIDTHS)) < 300:
            assert time.monotonic() < deadline, "no figure appears"
            time.sleep(0.1)


def test_captions_name_the_patient_and_explain(page):
    named = set()
    for i in range(len(PATIENTS)):
        open_category(page, "Patients")
        icons(page, "information-circle")[i].click()
        text, deadline = "", time.monotonic() + 10
        while "three criteria against k" not in text:
            assert time.monotonic() < deadline, "no caption appears"
            text = " ".join(page.find_element("tag name", "body").text.split())
        named |= {patient for patient in PATIENTS if f"Patient {patient}: the three criteria against k" in text}
    assert named == set(PATIENTS)


def test_the_page_has_no_errors(page):
    assert [entry for entry in page.get_log("browser") if "favicon" not in entry["message"]] == []
