# SPDX-License-Identifier: MIT
"""Headless Chromium that opens a report page and records errors on it."""

import base64
import json
import shutil
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

DRIVER = shutil.which("chromedriver")
PROGRAM = shutil.which("chromium") if DRIVER else None
WORDS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Browser:
    """One headless Chromium with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        options = Options()
        options.binary_location = PROGRAM
        for word in (*WORDS, f"--user-data-dir={profile}", "--window-size=1280,1000"):
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        prefs = {"download.default_directory": str(profile), "download.prompt_for_download": False}
        options.add_experimental_option("prefs", prefs)
        self.profile = profile
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.quit = self.driver.quit

    def open(self, page: Path, *, width: int = 1280, height: int = 1000, dark: bool = False):
        """Opens a file from disk, and waits until it is drawn."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        self.troubles()  # of a page before
        self.driver.get(page.as_uri())
        ready = "return document.documentElement.hasAttribute('data-ready')"
        self.until(lambda: self.js(ready))

    def print(self) -> bytes:
        """Prints the page as PDF."""
        return base64.b64decode(self._ask("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _ask(self, command, **given):
        return self.driver.execute_cdp_cmd(command, given)

    def js(self, program, *given):
        return self.driver.execute_script(program, *given)

    def find(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector):
        (one,) = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", one)
        one.click()

    def until(self, true, seconds=30):
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, f"waited {seconds} s in vain"
            time.sleep(0.05)
        return found

    def hover(self, element, x, y):
        """Points at a place, counted from an element's upper left corner."""
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.size
        away = round(x - size["width"] / 2), round(y - size["height"] / 2)
        ActionChains(self.driver).move_to_element_with_offset(element, *away).perform()

    def troubles(self):
        """What the console said, and requests for anything but the page itself."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.loadingFailed":
                said.append(f"failed: {message['params']}")
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("data:", "blob:", "file:")) or "favicon" in url:
                    said.append(f"asked for {url}")
        return said
