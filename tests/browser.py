"""A real browser for tests: Chromium, driven by chromedriver over the WebDriver protocol."""

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

# What a key is to WebDriver.
ENTER, ESCAPE, LEFT, RIGHT = "\ue007", "\ue00c", "\ue012", "\ue014"


def programs() -> list[str] | None:
    """The browser and its driver; None where one is missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return [browser, driver] if browser and driver else None


class Browser:
    """A headless browser with a profile of its own in `folder`, where it also saves downloads."""

    def __init__(self, folder: Path):
        browser, driver = programs()
        self.downloads = folder / "downloads"
        self.process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started = (re.search(r"successfully on port (\d+)", line) for line in self.process.stdout)
        port = next(match[1] for match in started if match)
        self.session = f"http://127.0.0.1:{port}/session"
        flags = "headless=new no-sandbox disable-gpu disable-background-networking no-first-run"
        # Without it some pages of files see an empty storage while the machine is busy.
        flags += " allow-file-access-from-files"
        flags = [*flags.split(), f"user-data-dir={folder / 'profile'}", "window-size=1280,900"]
        options = {
            "binary": browser,
            "args": ["--" + flag for flag in flags],
            "prefs": {"download.default_directory": str(self.downloads)},
        }
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.session += "/" + self.call("", wanted)["sessionId"]

    def call(self, command: str, body: dict | None = None):
        """The value that the driver answers; of a POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.session + command, data)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path) -> None:
        """Show a file, and wait until it is drawn: until then keys reach the page before it."""
        self.call("/url", {"url": path.as_uri()})
        drawn = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        self.call("/execute/async", {"script": drawn, "args": []})

    def js(self, script: str, *arguments):
        """What the body of a function returns."""
        return self.call("/execute/sync", {"script": script, "args": arguments})

    def press(self, keys: str) -> None:
        """Press keys one after another, where the focus is."""
        moves = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": moves}]})

    def click(self, selector: str) -> None:
        """Click the first element that matches, as a mouse does."""
        found = self.call("/element", {"using": "css selector", "value": selector})
        self.call(f"/element/{next(iter(found.values()))}/click", {})

    def emulate(self, command: str, **parameters) -> None:
        """A command of Chromium's own, such as another width."""
        self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def close(self) -> None:
        """End the browser and its driver."""
        request = urllib.request.Request(self.session, method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()
        self.process.terminate()
        self.process.wait()
