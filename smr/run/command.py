"""What every script's main does with errors: one line and an exit status, never a traceback."""

import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from smr import distributed
from smr.errors import InputError, NonFiniteLoss, RankLost

# In the messages of a GPU's and of a CPU's allocator, and of cuBLAS and cuDNN.
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED")
LESS_MEMORY = "lower --batch_size, --image_size or --num_workers; --resume continues the run"


def command(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Turn what `main` raises into one line and an exit status (docs/records.md).

    0 done, 1 failed, 2 bad input, 128+n stopped by signal n.
    """
    script = os.path.basename(main.__code__.co_filename)

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # letters that the console lacks are escaped
                stream.reconfigure(errors="backslashreplace")
        handler = signal.signal(signal.SIGTERM, interrupt)
        try:
            with distributed.process_group():
                status = main(argv) or 0
                flush_output()
                return status
        except InputError as error:
            print(f"{script}: error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except NonFiniteLoss as error:
            if distributed.is_rank_zero():
                print(f"{script}: stopped: {error}; the last checkpoint stays; try a smaller --lr")
            return 1
        except RankLost as error:
            print(f"{script}: {error}; --resume continues the run", file=sys.stderr)
            return 1
        except (MemoryError, RuntimeError) as error:
            reason = (str(error) or "out of memory").splitlines()[0]
            if not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(reason)):
                raise
            print(f"{script}: {reason}; {LESS_MEMORY}", file=sys.stderr)
            return 1
        except KeyboardInterrupt as stop:
            number = stop.args[0] if stop.args else signal.SIGINT
            if distributed.is_rank_zero():
                advice = "; --resume continues the run" if script.startswith("train_") else ""
                name = signal.Signals(number).name
                print(f"{script}: stopped by {name}{advice}", file=sys.stderr)
            return 128 + number
        except BrokenPipeError:
            with suppress(BrokenPipeError):
                flush_output()
            return 141
        finally:
            signal.signal(signal.SIGTERM, handler)

    return run


def flush_output() -> None:
    """Write the rest of the output, and give up what cannot be: Python tries once more at its exit.

    Raises BrokenPipeError. A full disk stops no run.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise


def interrupt(number: int, _frame) -> None:
    """Stop the process as Ctrl-C does; the checkpoint of the last whole epoch stays."""
    raise KeyboardInterrupt(number)
