"""The bench protocol of a worker: load, say "ready", then do one thing for every line that asks for it.

One side runs at a time: the parent asks the sides in turn, so that whatever disturbs the machine disturbs
all. A line is the name of an action, or a JSON object ``{"do": name, argument: value, ...}``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from parity.core import machine

# An action returns facts for the answer. "seconds" among them replaces the time the whole action took.
_Action = Callable[..., Mapping[str, Any]]
Actions = Mapping[str, _Action]


def say(event: str, **values: Any) -> None:
    """One line for the parent."""
    print(json.dumps({"event": event, **values}), flush=True)


def serve(load: Callable[[], tuple[Actions, Mapping[str, Any]]]) -> int:
    """``load`` returns the actions and facts about the side. Memory is the peak of this process; ``base`` is
    what it was before loading; after the built-in action "settle" peaks count from there on."""
    base = machine.peak_memory_mib()
    begin = time.perf_counter()
    try:
        actions, facts = load()
    except Exception as error:
        return _failed(error)
    say("ready", load_seconds=time.perf_counter() - begin, base_mib=base, **facts)
    for line in sys.stdin:
        name, arguments = _parse_request(line)
        begin = time.perf_counter()
        try:
            answer = _settle() if name == "settle" else actions[name](**arguments)
        except Exception as error:
            return _failed(error)
        seconds = time.perf_counter() - begin
        say("ran", **{"seconds": seconds, "peak_mib": machine.peak_memory_mib(), **answer})
    return 0


def _parse_request(line: str) -> tuple[str, dict[str, Any]]:
    """The name of an action and its arguments."""
    if not line.startswith("{"):
        return line.strip(), {}
    arguments = json.loads(line)
    return arguments.pop("do"), arguments


def _settle() -> dict[str, Any]:
    peak = machine.peak_memory_mib()
    return {"since_start_mib": peak, "reset": machine.reset_peak_memory()}


def _failed(error: Exception) -> int:
    if os.environ.get("PARITY_TRACEBACK"):
        traceback.print_exc()
    say("error", message=f"{type(error).__name__}: {error}"[:2000])
    return 2
