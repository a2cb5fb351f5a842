"""The page of a frontier in a real browser: it opens without a word on the console, and answers."""

import os
import shutil

import pytest

from jaxunlearn.audit.band import Band
from jaxunlearn.audit.intervals import Interval
from jaxunlearn.experiments.frontier import Frontier, write_page
from jaxunlearn.experiments.frontier.front import AXES, Point

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")


def interval(value, half=0.01):
    return Interval(value, value - half, value + half)


def made_up():
    """Retrain, no-op, four settings of ConMU and two of fine-tuning; </script> in a knob's name."""
    rows = [("retrain", {}, 0.9, 0.01, 0.95, 1.0), ("noop", {}, 0.91, 0.05, 0.5, 0.0)]
    for alpha in (0.0, 0.5):
        for delta in (1.0, 2.0):
            knobs = {"alpha": alpha, "proxy_epochs": delta, "</script>": 1.0}
            ta, jsd, cost = 0.905 - alpha / 50, 0.04 - 0.01 * delta, 0.05 * delta + 0.01 * alpha
            rows.append(("conmu", knobs, ta, jsd, 0.6 + alpha / 10, cost))
    for epochs, jsd in ((1.0, 0.06), (10.0, 0.02)):
        rows.append(("finetune", {"epochs": epochs}, 0.9, jsd, 0.7, 0.1 * epochs / 3))
    points = []
    for method, knobs, ta, jsd, frm, cost in rows:
        values = {axis: interval(0.5) for axis in AXES}
        values |= {"acc_test": interval(ta), "jsd": interval(jsd, 0.002), "frm": interval(frm)}
        values["cost"] = Interval(cost, cost, cost)
        values["mia"] = Interval(0.1, float("nan"), float("nan"))  # of one seed
        on = {"jsd": knobs.get("alpha") != 0.5, "frm": method != "finetune"}
        points.append(Point(method, knobs, 3, values, on, {"jsd": 0.75, "frm": 0.25}, ""))
    bands = {"acc_test": Band(0.89, 0.91), "jsd": Band(0.008, 0.012), "frm": Band(0.8, 1.0)}
    task = {"dataset": "digits", "arch": "mlp", "n_train": 1347, "n_forget": 269}
    return Frontier(tuple(points), bands, task, (0, 1, 2))


@pytest.fixture(scope="module")
def driver():
    if BROWSER is None or DRIVER is None:
        pytest.skip("no Chromium with chromedriver: apt install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "headless=new",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1280,1400",
    ):
        options.add_argument(f"--{argument}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root has no other way
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, tmp_path):
    path = write_page(made_up(), tmp_path / "frontier.html")
    driver.get(path.as_uri())
    yield Page(driver)
    assert driver.get_log("browser") == []


class Page:
    """What a reader does."""

    def __init__(self, driver):
        self.driver = driver

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def one(self, css):
        (found,) = self.all(css)
        return found

    def points(self, panel=0, kind=""):
        return self.all("svg.panel")[panel].find_elements("css selector", f"g.point{kind}")

    def choose(self, css, value):
        from selenium.webdriver.support.ui import Select

        Select(self.one(css)).select_by_value(value)

    def hover(self, element):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def rows(self):
        return [row for row in self.all("tr[data-id]") if row.is_displayed()]


def test_opens_with_every_point_in_every_panel(page):
    assert [len(page.points(panel)) for panel in range(3)] == [8, 8, 8]
    assert len(page.rows()) == 8
    assert page.one("#count").text == "6 settings shown, 4 of them beaten by no other"
    assert not page.one("#tip").is_displayed()
    for panel in page.all("svg.panel"):  # inside their frames, none on top of the axes
        frame = panel.rect
        for point in panel.find_elements("css selector", ".mark"):
            box = point.rect
            assert abs(box["width"] - box["height"]) < 2
            assert frame["x"] <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"]
            assert (
                frame["y"] <= box["y"] and box["y"] + box["height"] <= frame["y"] + frame["height"]
            )
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 1280


def test_positions_follow_the_values(page):
    place = lambda point: point.find_element("css selector", ".mark").rect
    by_id = {p.get_attribute("data-id"): place(p) for p in page.points(1)}
    retrain, noop = by_id["p0"], by_id["p1"]
    assert retrain["x"] < noop["x"]  # nearer to retraining is further left
    assert noop["y"] < retrain["y"]  # more accurate is higher
    cost = {p.get_attribute("data-id"): place(p)["x"] for p in page.points(0)}
    assert cost["p1"] < min(v for k, v in cost.items() if k != "p1") and cost["p0"] == max(
        cost.values()
    )


def test_hover_tells_the_setting_in_all_panels(page):
    point = page.points(0, ".conmu")[0]
    page.hover(point)
    tip = page.one("#tip")
    assert tip.is_displayed()
    assert tip.text.startswith("ConMU: alpha") and "TA 89.5 ± 1.0%" in tip.text
    assert "non-dominated in 75% of resamples" in tip.text
    name = point.get_attribute("data-id")
    assert len(page.all(f"g.on[data-id={name}]")) == 3 and len(page.all("tr.on")) == 1
    page.hover(page.one("h1"))
    assert not tip.is_displayed() and not page.all(".on")
    page.hover(page.rows()[0])  # and from the table
    assert tip.is_displayed() and len(page.all("g.on")) == 3


def test_keyboard_reaches_the_points(page):
    page.driver.execute_script("document.querySelector('g.point').focus()")
    assert page.one("#tip").is_displayed()
    page.driver.switch_to.active_element.send_keys("\ue00c")  # Escape
    assert not page.one("#tip").is_displayed()


def test_filters(page):
    page.choose("select[data-knob=alpha]", "0.5")
    assert len(page.points(0)) == 6 and len(page.rows()) == 6  # two of ConMU less
    page.choose("select[data-knob=epochs]", "10")
    assert len(page.points(0)) == 5
    page.one("input[value=finetune]").click()
    assert len(page.points(2)) == 4
    page.one("#front-only").click()
    assert len(page.points(2)) == 2 and page.one("#count").text.startswith("0 settings")
    page.one("button[type=reset]").click()
    page.driver.execute_async_script("setTimeout(arguments[0], 50)")
    assert len(page.points(0)) == 8 and len(page.rows()) == 8


def test_the_other_measure_of_privacy(page):
    labels = lambda: [text.text for text in page.all("svg.panel .label")]
    assert any("JSD" in text for text in labels()) and not any("FRM" in text for text in labels())
    page.choose("#privacy", "frm")
    assert any("FRM" in text for text in labels()) and not any("JSD" in text for text in labels())
    assert page.one("#count").text == "6 settings shown, 4 of them beaten by no other"
    fronts = {p.get_attribute("data-id") for p in page.points(0, ".front")}
    assert fronts == {"p0", "p1", "p2", "p3", "p4", "p5"}
    page.hover(page.points(0, ".finetune")[0])
    assert "non-dominated in 25%" in page.one("#tip").text


def test_lines_join_settings_that_differ_in_one_knob(page):
    page.choose("#along", "conmu alpha")
    lines = page.all("svg.panel")[0].find_elements("css selector", "polyline.path")
    assert len(lines) == 2  # one for each proxy_epochs
    assert all(len(line.get_attribute("points").split()) == 2 for line in lines)
    page.choose("#along", "finetune epochs")
    assert len(page.all("polyline.path.finetune")) == 3


def test_a_narrow_window(page):
    page.driver.set_window_size(480, 900)
    try:
        width = page.driver.execute_script("return [innerWidth, document.body.scrollWidth]")
        assert width[1] <= width[0]
    finally:
        page.driver.set_window_size(1280, 1400)
