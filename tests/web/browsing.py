"""A browser without a window, and what people do in it."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

LIMIT = 60.0
"""Seconds after which what is waited for will not come; generous, because machines are shared."""

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


class Browser:
    """One window; all selectors are of CSS."""

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def width(self, pixels: int, height: int = 900) -> None:
        """Make the window so wide."""
        size = {"width": pixels, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def all(self, selector: str) -> list[WebElement]:
        """What is there now."""
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> WebElement:
        """The first of these, as soon as one is shown."""
        return self.until(lambda: next((item for item in self.all(selector) if item.is_displayed()), None), selector)

    def texts(self, selector: str) -> list[str]:
        """What is said there, as it stands in the document."""
        script = "return [...document.querySelectorAll(arguments[0])].map((item) => item.textContent)"
        found: list[str] = self.driver.execute_script(script, selector)
        return found

    def click(self, selector: str) -> None:
        """The first of these that is shown, brought into view."""
        item = self.one(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", item)
        item.click()

    def type(self, selector: str, words: str) -> None:
        """In place of what was there."""
        item = self.one(selector)
        item.clear()
        item.send_keys(words)

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Wait for something; gives it."""
        deadline = time.monotonic() + LIMIT
        while not (found := holds()):
            if time.monotonic() > deadline:
                problem = self.texts("#problem, .failed")
                raise AssertionError(f"waited {LIMIT:.0f} s for {what}; the page says {problem}, {self.messages()}")
            time.sleep(0.02)
        return found

    def messages(self) -> list[str]:
        """What the browser's console was told since it was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A fresh browser that keeps all that it has in a folder.

    Raises:
        FileNotFoundError: There is none on this machine.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    steering = shutil.which("chromedriver")
    if program is None or steering is None:
        raise FileNotFoundError("Chromium and chromedriver are needed: make test-web installs them, or says how")
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(steering))
    try:
        yield Browser(driver, downloads)
    finally:
        driver.quit()
