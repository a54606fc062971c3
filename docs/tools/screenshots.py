"""Pictures of the page that `llm-mojo serve` shows, for docs/guides/serve.md, light and dark, into docs/img.

    python docs/tools/screenshots.py RUNS NAME     # a folder of runs, and the one that plays and is looked into

Needs the extras serve and page, and Chromium.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "img"
WIDTH, HEIGHTS = 1000, {"runs": 760, "play": 800, "inside": 1420}
PROMPT = "The function returns"
TEXT = "The import statement imports a module and then binds the module to a name."


def main(runs: str, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "llm_mojo", "serve", "--runs", runs, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    address = next(found[1] for line in server.stdout if (found := re.search(r"open (http://\S+)", line)))
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for scheme, suffix in (("light", ""), ("dark", "-dark")):
                for view, show in (("runs", show_runs), ("play", show_play), ("inside", show_inside)):
                    size = {"width": WIDTH, "height": HEIGHTS[view]}
                    page = browser.new_page(viewport=size, color_scheme=scheme)
                    page.goto(f"{address}#{view}")
                    show(page, name)
                    page.screenshot(path=IMAGES / f"page-{view}{suffix}.png")
    finally:
        server.terminate()


def show_runs(page: Page, name: str) -> None:
    """All runs over each other."""
    page.wait_for_selector("#charts svg")
    for box in page.query_selector_all("#run-list input:not(:checked)"):
        box.check()
    page.wait_for_timeout(2000)


def show_play(page: Page, name: str) -> None:
    """A text, and what else could stand at one place."""
    page.select_option("#play [name=model]", name)
    page.fill("#play [name=prompt]", PROMPT)
    page.fill("#play [name=max_tokens]", "200")
    page.fill("#play [name=n]", "3")
    page.click("#play button[type=submit]")
    page.locator("#play-state", has_text="a second").wait_for()
    page.locator("#samples .token").nth(20).click()
    page.wait_for_selector("#alternatives:not([hidden])")


def show_inside(page: Page, name: str) -> None:
    """The maps, one of them large, with a token chosen."""
    page.select_option("#inside [name=model]", name)
    page.fill("#inside [name=text]", TEXT)
    page.click("#inside button[type=submit]")
    page.wait_for_selector("#head-large canvas")
    page.locator("#heads button").nth(5).click()
    page.locator("#head-large .token").nth(45).click()


if __name__ == "__main__":
    main(*sys.argv[1:])
