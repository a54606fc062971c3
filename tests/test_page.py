"""The page in a real browser: a running training to its end, text and alternatives, attention; no error, and axe finds nothing.

Run by `make test-page`. PAGE_SHOTS names a folder for a picture of each view, light and dark, on a desktop and a phone.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_mojo import GPT2, GPT2Config, Tokenizer, formats
from mojo_programs import ENVIRONMENT, ROOT
from test_serve import Running

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra page: pip install -e '.[page]'")
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs the extra page: pip install -e '.[page]'"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.page,
    pytest.mark.engine,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of characters, and the data for another."""
    folder = tmp_path_factory.mktemp("page")
    text = "ROMEO: what light is this? It is the east, and Juliet is the sun. Zwölf é. " * 60
    (folder / "text.txt").write_text(text)
    command = ["train", "text.txt", "--tokenizer", "char", *SIZES, "-x", "120", "-v", "40", "-n", "40"]
    call(folder, *command)
    return folder


SIZES = [
    "--n-layer",
    "2",
    "--n-head",
    "2",
    "--n-embd",
    "64",
    "-t",
    "32",
    "-b",
    "8",
    "--max-minutes",
    "0",
    "-s",
    "60",
    "-g",
    "60",
]


def call(folder, *words, **options):
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")}
    command = [sys.executable, "-m", "llm_mojo", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, **options)


@pytest.fixture(scope="module")
def server(folder):
    running = Running(cwd=folder)
    yield running
    running.end()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport=DESKTOP)
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.problems = problems
    page.goto(server.url)
    yield page
    context.close()
    assert not problems


def check(page, name):
    """axe finds nothing of level A or AA; pictures, if they are wanted, and nothing wider than the window."""
    tags = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
    for scheme in "light", "dark":
        page.emulate_media(color_scheme=scheme)
        for size, viewport in {"desktop": DESKTOP, "phone": PHONE}.items():
            page.set_viewport_size(viewport)
            page.wait_for_timeout(100)
            results = axe.Axe().run(page, options=tags)
            assert results.violations_count == 0, results.generate_report()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                f"{name} is too wide for a {size}"
            )
            if shots := os.environ.get("PAGE_SHOTS"):
                Path(shots).mkdir(exist_ok=True)
                page.screenshot(path=f"{shots}/{name}-{scheme}-{size}.png", full_page=True)
    page.set_viewport_size(DESKTOP)
    page.wait_for_timeout(300)  # what a new size closes is closed by then


def test_a_running_training_is_watched_to_its_end(page, folder):
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "pysrc")}
    command = [
        sys.executable,
        "-m",
        "llm_mojo",
        "train",
        "text.txt",
        "--tokenizer",
        "char",
        *SIZES,
        "-x",
        "1500",
        "-v",
        "300",
    ]
    process = subprocess.Popen([*command, "--seed", "5"], cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    try:
        row = page.locator("#run-list label", has_text="text-2")
        row.locator(".running").wait_for(timeout=60_000)
        row.locator("input").check()
        page.get_by_text("running", exact=True).last.wait_for()
        details = page.locator("#run-details")
        details.get_by_text("1500 of 1500").wait_for(timeout=120_000)
        row.locator(".running").wait_for(state="detached", timeout=60_000)
    finally:
        process.wait()
    # Both runs are in each of the four charts.
    assert page.locator("#charts svg.chart").count() == 4
    assert page.locator("#charts svg.chart").first.locator("path.curve").count() == 2
    label = page.locator("#charts svg.chart").first.get_attribute("aria-label")
    assert label.startswith("Loss (nats per token) over steps. Last values: text: ") and "validation" in label
    for x in "minutes", "tokens", "step":
        page.locator("#run-axes select").select_option(x)
        page.locator("#charts").get_by_text("steps" if x == "step" else x, exact=True).first.wait_for()
    page.get_by_label("log x").check()
    page.get_by_label("log y").check()
    page.locator("#run-details summary", has_text="Samples").first.click()
    assert page.locator("#run-details pre").count() >= 2
    page.locator("#run-details summary", has_text="Settings").first.click()
    details.get_by_text("learning-rate", exact=True).first.wait_for()
    check(page, "runs")


def test_play(page):
    page.get_by_role("link", name="Play").click()
    page.get_by_label("Text to go on from").fill("ROMEO: what")
    page.get_by_label("Samples").fill("2")
    page.get_by_label("Tokens", exact=True).fill("30")
    page.get_by_role("button", name="Write").click()
    page.locator("#play-state", has_text="60 tokens").wait_for(timeout=60_000)
    first = page.locator("#samples .text").first
    assert first.inner_text().startswith("ROMEO: what") and first.locator(".token").count() == 30
    # With the keyboard: the fifth token, its alternatives, the third of them.
    tokens = first.locator(".token")
    tokens.first.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.locator("#alternatives button").count() == 10
    check(page, "play")
    tokens.nth(4).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    before = [tokens.nth(i).inner_text() for i in range(4)]
    taken = page.evaluate("document.activeElement.firstChild.textContent")
    page.keyboard.press("Enter")
    page.locator("#play-state", has_text="25 tokens").wait_for(timeout=60_000)
    assert [tokens.nth(i).inner_text() for i in range(4)] == before
    assert tokens.nth(4).inner_text().replace(" ", "␣").replace("\n", "⏎") == taken
    assert tokens.count() == 30
    # With the mouse: another token's alternatives go when Escape is pressed.
    tokens.nth(9).hover()
    page.locator("#alternatives").wait_for()
    page.keyboard.press("Escape")
    page.locator("#alternatives").wait_for(state="hidden")


def test_characters_that_are_not_in_the_vocabulary(page):
    page.get_by_role("link", name="Play").click()
    page.get_by_label("Text to go on from").fill("東京")
    page.on("console", lambda message: page.problems.clear())  # the browser notes the status 400
    page.get_by_role("button", name="Write").click()
    page.get_by_role("alert").get_by_text("東").wait_for()
    page.problems.clear()


def test_stop(page, server):
    page.get_by_role("link", name="Play").click()
    page.get_by_label("Tokens", exact=True).fill("4096")
    page.get_by_role("button", name="Write").click()
    page.locator("#samples .token").nth(20).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator("#play-state", has_text="stopped").wait_for()


def test_inside(page):
    page.get_by_role("link", name="Inside").click()
    page.get_by_label("A text of up to 256 tokens").fill("It is the east")
    page.get_by_role("button", name="Look").click()
    page.get_by_role("heading", name="Layer 2", exact=True).wait_for(timeout=60_000)
    assert page.locator("#heads .layer button").count() == 4
    page.get_by_role("button", name="Layer 2, head 1").click()
    page.get_by_role("heading", name="Layer 2, head 1").wait_for()
    page.get_by_role("button", name="token 5:").hover()
    page.locator("#head-large [role=status]", has_text="looks at").wait_for()
    # The first token has nothing before it: all of its attention is on itself.
    page.get_by_role("button", name="token 1:").hover()
    page.get_by_text("“I” looks at “I” (1.) 100%").wait_for()
    check(page, "inside")


def test_a_models_text_is_never_html(browser, tmp_path):
    """A vocabulary whose tokens are markup: it is shown, letter by letter, and does nothing."""
    words = [b"<img src=x onerror=alert(1)>", b"<script>alert(1)</script>", b"</div>", b"&lt;", b"\xe6\x9d", b"\xb1"]
    formats.write_tokenizer(tmp_path / "markup_tokenizer.bin", words, None)
    model = GPT2(GPT2Config(32, len(words), 1, 1, 16), tokenizer=Tokenizer(tmp_path / "markup_tokenizer.bin"))
    model.save(tmp_path / "markup.bin")
    running = Running("markup.bin", cwd=tmp_path)
    try:
        page = browser.new_page()
        alerts = []
        page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        page.goto(f"{running.url}#play")
        page.get_by_label("Temperature").fill("3")
        page.get_by_role("button", name="Write").click()
        page.locator("#play-state", has_text="100 tokens").wait_for(timeout=60_000)
        text = page.locator("#samples .text").inner_text()
        assert "<script>alert(1)</script>" in text and "東" in text
        assert not alerts and page.locator("#samples script, #samples img").count() == 0
        page.get_by_label("show every token").check()
        assert "e6 9d" in page.locator("#samples .text").inner_text()
        page.close()
    finally:
        running.end()


def test_no_runs_at_all(browser, tmp_path):
    running = Running(cwd=tmp_path)
    try:
        page = browser.new_page()
        page.goto(running.url)
        page.get_by_role("alert").get_by_text("There are no runs in runs yet. Train one").wait_for()
        page.get_by_role("link", name="Play").click()
        page.get_by_role("alert").get_by_text("No run has a checkpoint yet").wait_for()
        page.close()
    finally:
        running.end()
