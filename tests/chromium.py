"""A real browser, where there is one: what a page has become after its script has run."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Chromium:
    """``profile`` is a folder of its own: a browser that runs already is left alone."""

    binary: str
    profile: Path

    def document(self, url: str) -> str:
        """The document of ``url`` after five seconds of the page's own time."""
        return self._run("--dump-dom", url)

    def _run(self, *arguments: str) -> str:
        command = [self.binary, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={self.profile}", "--virtual-time-budget=5000", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


def installed() -> str | None:
    """Its path, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)
