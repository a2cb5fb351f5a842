"""Photographs docs/images/conmu_frontier.png: the page of a frontier in a headless Chromium.

Run from the root of a checkout, with the folder of a frontier:

    python docs/figures/conmu.py runs/fashion
"""

import io
import pathlib
import shutil
import sys

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import Select

from jaxunlearn.experiments import read_records
from jaxunlearn.experiments.frontier import frontier_of, write_page

OUT = pathlib.Path(__file__).parents[1] / "images" / "conmu_frontier.png"


def main(folder: str) -> None:
    page = write_page(frontier_of(read_records(folder)), pathlib.Path(folder) / "frontier.html")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "window-size=1240,1180",
    ):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(page.resolve().as_uri())
        Select(driver.find_element("id", "along")).select_by_value("conmu alpha")
        panel = driver.find_elements("css selector", "svg.panel")[1]
        marks = panel.find_elements("css selector", "g.point.conmu.front .mark")
        lowest = max(marks, key=lambda mark: mark.rect["y"])  # none of fine-tuning's lies on it
        ActionChains(driver).move_to_element(lowest).perform()
        picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    finally:
        driver.quit()
    picture.save(OUT, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
