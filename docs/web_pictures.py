"""Draws docs/images/web.png and web-400.png: the page, two models side by side, where their last answers looked.

python docs/web_pictures.py FOLDER SECOND_FOLDER      two saved models of the tiny world
python docs/web_pictures.py http://127.0.0.1:8000     a page that is open already, with two models
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "web"))

from browsing import browser  # noqa: E402 (of the tests)

IMAGES = ROOT / "docs" / "images"
SIZES = {"web": (1400, 900), "web-400": (400, 900)}
SHOWN = 2
"""The example that is chosen, counted from 1."""


def draw(address: str) -> None:
    """Hold the example's conversation in a browser and keep what it looks like."""
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as page:
        page.width(*SIZES["web"])
        page.driver.get(address)
        page.click(f"#examples button:nth-child({SHOWN})")
        page.click("#compare")
        while page.all("#question")[0].get_property("value"):
            rounds = len(page.all(".round"))
            page.click("#send")
            page.until(lambda rounds=rounds: len(page.all(".round")) == rounds + 1, "a round")
            page.until(lambda: page.all("#send")[0].is_displayed() and not page.all(".running"), "answers")
        for number in (0, 1):
            look = page.all(".round:last-child .look")[number]
            page.driver.execute_script("arguments[0].click()", look)
        page.until(
            lambda: len(page.all(".looked figure")) == 2 * len(page.all(".round .images img")), "where they looked"
        )
        for name, size in SIZES.items():
            page.width(*size)
            page.driver.execute_script(
                "document.querySelector('.round:last-child').scrollIntoView();"
                "window.scrollBy(0, -document.querySelector('header').offsetHeight - 12)"
            )
            path = IMAGES / f"{name}.png"
            page.driver.save_screenshot(str(path))
            Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path, optimize=True)


def main() -> None:
    """Of a page that is open, or of one that this opens."""
    first, *others = sys.argv[1:]
    if first.startswith("http"):
        draw(first)
        return
    words = ("visualchat-web", f"folder={first}", f"page.second.folder={others[0]}", "page.open=false", "port=0")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = "".join(process.stdout.readline() for _ in range(3))
        found = re.search(r"the page: (\S+)", said)
        assert found, said
        draw(found[1])
        process.terminate()


if __name__ == "__main__":
    main()
