"""A headless Chromium that a test drives."""

import json
import shutil
import time
from pathlib import Path

import pytest


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,900"
).split()


def rows(n: int) -> list[dict]:
    said = [{"prompt": f"question {i}", "response_a": f"answer {i}", "response_b": f"another {i}"} for i in range(n)]
    return [{**r, "pair": [0, 1]} for r in said]


class Browser:
    """A headless Chromium with the actions of a person."""

    def __init__(self, folder: Path):
        webdriver = pytest.importorskip("selenium.webdriver")
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str, seconds: float = 20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(f"return {condition}"):
                return found
            time.sleep(0.02)
        raise TimeoutError(condition)

    def press(self, keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(keys)

    def shown(self) -> str:
        """Wait until a key may be pressed; return the key of the shown pair, empty at the end."""
        self.wait("document.querySelector('#pair') && document.querySelector('#vote-undo') && window.trlReal.ready()")
        return self.run("return document.querySelector('#pair').dataset.key")

    def vote(self, key: str) -> str:
        """Press a key and wait for the next pair."""
        before = self.run("return document.querySelector('#pair').dataset.reply")
        self.press(key)
        self.wait(f"document.querySelector('#pair').dataset.reply != '{before}'")
        return self.shown()

    def text(self) -> str:
        return self.run("return document.body.innerText")

    def enter(self, name: str) -> str:
        field = self.wait("document.querySelector('#annotator input, #annotator textarea')")
        field.send_keys(name)
        time.sleep(0.2)
        field.send_keys("\n")
        return self.shown()

    def asked_for(self) -> set[str]:
        """Return every address outside the page that the browser requested."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return {url for url in sent if url.startswith(("http", "ws")) and not url.startswith("http://127.0.0.1:")}


def arrive(browser, address: str) -> None:
    """Open a page and enter a name; the second page in the same tab already knows it."""
    browser.driver.get(address)
    asks = "document.querySelector('#annotator input, #annotator textarea')"
    browser.wait(f"{asks} || document.querySelector('#pair')")
    if browser.run(f"return !!{asks}"):
        browser.enter("ann")
