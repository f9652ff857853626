"""How long the playground makes a person wait, in Chromium.

    python -m benchmarks.playground --workdir=runs/quickstart [--rounds=5]

Seconds until the server listens; from asking for the page until its first paint, and
until the run is open; from pressing Fill until all tokens of a block are written, with
the pictures of forward passes, the first time and once all is compiled.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
from playwright.sync_api import Browser, expect, sync_playwright

from benchmarks.alternate import machine

NAMES = ("listens", "first paint", "run open", "first fill", "fill")


def one_round(browser: Browser, workdir: str) -> list[float]:
    """Returns seconds, one for each of NAMES."""
    command = ("-m", "jaxgpt.playground", f"--workdir={workdir}", "--port=0")
    began = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, *command, "--no_browser"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr
        url = re.search(r"http\S+", server.stderr.readline())
        assert url
        found = [time.perf_counter() - began]
        page = browser.new_page()
        asked = time.perf_counter()
        page.goto(url[0])
        fill = page.get_by_role("button", name="Fill", exact=True)
        fill.wait_for(timeout=60_000)
        opened = time.perf_counter() - asked
        paints = "() => performance.getEntriesByType('paint').map((e) => e.startTime)"
        found += [min(page.evaluate(paints)) / 1000, opened]
        editor = page.get_by_role("textbox", name="Text with gaps")
        editor.click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text("<missing:64>")
        for _ in range(2):
            pressed = time.perf_counter()
            fill.click()
            expect(page.locator("#status")).to_have_text("done", timeout=90_000)
            found.append(time.perf_counter() - pressed)
        page.close()
    finally:
        server.terminate()
        server.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        seconds = np.array(
            [one_round(browser, args.workdir) for _ in range(args.rounds)]
        )
    rows = dict(zip(NAMES, seconds.T.tolist(), strict=True))
    for name, values in rows.items():
        median, least, most = np.median(values), min(values), max(values)
        print(f"{name:12} {median:6.2f} s  ({least:.2f} - {most:.2f})")
    print(json.dumps({"seconds": rows, "machine": machine()}))


if __name__ == "__main__":
    main()
