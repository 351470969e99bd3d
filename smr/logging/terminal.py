"""Lines for a reader: one kept in place on a terminal, plain ones now and then elsewhere."""

import shutil
import sys
import time
from contextlib import suppress

from smr import distributed

# Seconds between progress lines on a terminal, and where the output is none.
TERMINAL_PERIOD, PLAIN_PERIOD = 1.0, 30.0


class Terminal:
    """Standard output, whether it is a terminal, a file or a closed pipe."""

    def __init__(self):
        self.terminal = sys.stdout.isatty()
        self.period = TERMINAL_PERIOD if self.terminal else PLAIN_PERIOD
        self.last_shown = time.monotonic()

    def line(self, text: str) -> None:
        """Print a line of its own."""
        self._show(("\r\x1b[K" if self.terminal else "") + text + "\n")

    def due(self) -> bool:
        """Whether it is time for another progress line; the caller then shows one."""
        now = time.monotonic()
        if now - self.last_shown < self.period:
            return False
        self.last_shown = now
        return True

    def progress(self, text: str) -> None:
        """Show a progress line: in place on a terminal, cut to its width."""
        if self.terminal:
            self._show("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
        else:
            self._show(text + "\n")

    def _show(self, text: str) -> None:
        # Where somebody reads: a closed pipe or a log on a full disk stops no run.
        with suppress(OSError):
            if distributed.is_rank_zero():
                print(text, end="", flush=True)
