"""Takes the picture of the web chat in the README: a model answers a question in a real browser.

    pip install playwright==1.65.2      # and a Chromium of the system's
    python scripts/pictures/page.py MODEL docs/web-chat.png ["QUESTION" …]

Starts `wels serve` for the model on a free port with a ledger that is thrown away.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

QUESTIONS = ["Write a Python function that reverses a string."]
# Room for one question and its answer.
SIZE = {"width": 1000, "height": 780}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def picture(address: str, key: str, path: str, questions: list[str]) -> None:
    """Asks the questions one after the other, and keeps what the page then looks like."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=program)
        page = browser.new_page(viewport=SIZE)
        page.goto(f"{address}/#key={key}")
        for number, question in enumerate(questions):
            page.fill("#input", question)
            page.press("#input", "Enter")
            page.locator(".numbers", has_text="tokens/s").nth(number).wait_for(timeout=120_000)
        page.wait_for_timeout(500)
        page.screenshot(path=path)
        browser.close()


def main() -> None:
    model, path, *questions = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        listen = f"127.0.0.1:{free_port()}"
        command = ["wels", "serve", model, "--listen", listen, "--db", str(Path(folder) / "ledger.db")]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            key = next(found[1] for line in server.stdout if (found := re.search(r"\b(wels-\S+|sk-\S+)", line)))
            picture(f"http://{listen}", key, path, questions or QUESTIONS)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
