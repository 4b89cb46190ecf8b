"""The page in a browser: where there is Chromium (Debian: chromium and chromium-driver) and selenium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipcert.report import html
from reports import entry_of

webdriver = pytest.importorskip("selenium.webdriver")
_BROWSER, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (_BROWSER and _DRIVER), reason="needs chromium and chromedriver")
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,900"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in [*_FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("page") / "both.html"
    file.write_text(html([entry_of(), replace(entry_of(False), label="the other")]), encoding="utf-8")
    browser.get(Path(file).as_uri())
    return browser


def _slide(page: Any, epsilon: float) -> None:
    page.execute_script(
        "const s = document.getElementById('eps'); s.value = arguments[0]; s.dispatchEvent(new Event('input'));",
        epsilon,
    )


def _text(page: Any, selector: str) -> str:
    return str(page.execute_script("return document.querySelector(arguments[0]).textContent", selector))


def _share(text: str) -> float:
    return float(text.removesuffix(" %"))


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 0.5, 0.8123])
def test_the_slider_says_what_the_certificate_says(page: Any, epsilon: float) -> None:
    _slide(page, epsilon)
    entry = entry_of()
    assert entry.attacked is not None
    for run in (0, 1):
        certified = _share(_text(page, f'.readout[data-run="{run}"] [data-what="certified"]'))
        assert 100 * entry.certified_at(epsilon) - 0.01 <= certified <= 100 * entry.certified_at(epsilon)
    attacked = _share(_text(page, '.readout[data-run="0"] [data-what="attacked"]'))
    assert 100 * entry.attacked.accuracy_at(epsilon) <= attacked <= 100 * entry.attacked.accuracy_at(epsilon) + 0.01
    cells = page.execute_script(
        "return [...document.querySelectorAll('section.run[data-run=\"0\"] [data-what=confusion] tbody tr')]"
        ".map(r => [...r.cells].slice(1).map(c => Number(c.textContent)))"
    )
    assert sum(map(sum, cells)) == len(entry.labels)
    assert sum(row[i] for i, row in enumerate(cells)) == round(entry.certified_at(epsilon) * len(entry.labels))
    badges = page.execute_script("return [...document.querySelectorAll('.badge')].map(b => b.textContent)")
    assert len(badges) > 20
    assert set(badges) <= {"certified at ε", "broken at ε", "open at ε"}


def test_chips_set_it(page: Any) -> None:
    page.execute_script("document.querySelectorAll('.chips button')[1].click()")
    assert _text(page, "#eps-text").startswith("0.5000")
    assert page.execute_script("return document.querySelectorAll('.chips .on').length") == 1
    where = page.execute_script(
        "return [...document.querySelectorAll('.marker')].map(m => Number(m.getAttribute('x1')))"
    )
    assert len({round(x, 3) for x in where}) == 2  # of the curves, and of the strips


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    time.sleep(0.1)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_it_asks_for_nothing_and_complains_of_nothing(page: Any) -> None:
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    mine = [p["request"]["url"] for p in sent if p["documentURL"] == page.current_url]
    assert [url for url in mine if not url.startswith("data:")] == [page.current_url]
    assert [e for e in page.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
    assert page.title == "lipcert report"
