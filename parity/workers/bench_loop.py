"""The bench protocol of a worker: load, say "ready", then run the model once for every line that says so.

One model runs at a time: the parent asks the sides in turn, so that whatever disturbs the machine disturbs
all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from parity import machine

Run = Callable[[], int]


def say(event: str, **values: Any) -> None:
    """One line for the parent."""
    print(json.dumps({"event": event, **values}), flush=True)


def serve(load: Callable[[], tuple[Run, Mapping[str, Any]]]) -> int:
    """``load`` returns a function that runs the model once and tells how many detections it found, and facts
    about the side. Memory is the peak of this process; ``base`` is what it was before loading."""
    base = machine.peak_memory_mib()
    begin = time.perf_counter()
    try:
        run, facts = load()
    except Exception as error:
        say("error", message=f"{type(error).__name__}: {error}")
        return 2
    say("ready", load_seconds=time.perf_counter() - begin, base_mib=base, **facts)
    for line in sys.stdin:
        if line.strip() != "run":
            break
        begin = time.perf_counter()
        try:
            found = run()
        except Exception as error:
            say("error", message=f"{type(error).__name__}: {error}")
            return 2
        seconds = time.perf_counter() - begin
        say("ran", seconds=seconds, detections=found, peak_mib=machine.peak_memory_mib())
    return 0
