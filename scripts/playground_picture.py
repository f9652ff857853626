"""Takes a picture of the playground in Chromium: two fillings of the same gaps.

python -m scripts.playground_picture --workdir=runs/quickstart --output=playground.png
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys

from playwright.sync_api import Page, expect, sync_playwright

SIZE = {"width": 1200, "height": 700}
TOKEN = 9  # Of the first text, whose alternatives are shown.


def take(page: Page, url: str, output: str) -> None:
    page.goto(url)
    page.get_by_role("button", name="Fill", exact=True).wait_for(timeout=60_000)
    page.get_by_label("Samples").fill("2")
    for _ in range(2):  # The second time nothing is compiled.
        page.get_by_role("button", name="Fill", exact=True).click()
        page.locator("article .made").nth(0).wait_for(timeout=90_000)
        expect(page.locator("#status")).to_have_text("done", timeout=90_000)
    page.wait_for_timeout(1200)  # The lit tokens fade.
    page.locator(".made[role]").nth(TOKEN).hover()
    page.locator("#popover button").nth(0).wait_for()
    page.screenshot(path=output, full_page=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    command = ("-m", "jaxgpt.playground", f"--workdir={args.workdir}", "--port=0")
    server = subprocess.Popen(
        [sys.executable, *command, "--no_browser"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr
        url = re.search(r"http\S+", server.stderr.readline())
        assert url
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            take(browser.new_page(viewport=SIZE), url[0], args.output)  # type: ignore
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
