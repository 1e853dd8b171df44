"""Reads pickles as data: an interpreter of pickle opcodes that can only build what a checkpoint consists of.

Nothing here imports or looks up anything by a name from the file: a global is a key of one literal table
(``CALLS`` and the names beside it), or it becomes an inert placeholder: an optimizer, a path, a date, whatever a
training run put beside its weights. A name whose only use is to run something refuses the file. Tensor data are
never copied, they stay views of the file's buffer. The idea, not the code, follows torch's weights-only unpickler.

``_unpickle_state.py`` has the machine and what it builds, ``_unpickle_stack.py`` the opcodes for plain values and
containers, ``_unpickle_calls.py`` what the allowed globals build; the globals themselves are here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from weights._limits import MAX_OPCODES, Budget
from weights._unpickle_calls import CALLS, _dtype_problem, fill
from weights._unpickle_stack import STACK
from weights._unpickle_state import (
    LAZY_BYTES,
    STORAGE_DTYPES,
    TORCH_DTYPES,
    ArrayShell,
    Dict,
    Dtype,
    Inert,
    Name,
    PersistentLoader,
    State,
    TensorRef,
    kind,
)
from weights.errors import CheckpointError

# What only a program has a use for: a file that asks for it is no checkpoint, even though nothing here would run it.
_RUNS_MODULES = frozenset(
    """os posix nt subprocess pty popen2 commands shutil socket ctypes _ctypes runpy importlib code codeop pdb bdb sys
    webbrowser timeit cProfile profile pip signal""".split()
)


_RUNS_BUILTINS = frozenset("eval exec execfile compile open file input breakpoint apply __import__".split())


def load(
    data: memoryview,
    start: int = 0,
    *,
    persistent: PersistentLoader | None = None,
    nested: Callable[[memoryview], Any] | None = None,
) -> tuple[Any, int]:
    """Interpret one pickle.

    Args:
        data: the bytes of the file; results keep views of it.
        start: where the pickle begins.
        persistent: resolves persistent ids (torch storages); without it they are refused.
        nested: reads the bytes given to ``torch.storage._load_from_bytes``; without it that is refused.

    Returns:
        the value and the position after the pickle. Arrays come as read-only views of ``data``, torch
        tensors as :class:`TensorRef`, long strings as :class:`LongText`, objects of other classes as
        :class:`Inert`.

    Raises:
        CheckpointError: for anything that is not plain checkpoint data; the message names the offence.
    """
    budget = Budget(MAX_OPCODES, f"its pickle takes more than {MAX_OPCODES} steps")
    state = State(data, start, persistent, nested, budget)
    state.copied = Budget(2 * len(data) + (1 << 20), "its pickle copies the same strings over and over")
    try:
        return _run(state), state.pos
    except CheckpointError as error:
        raise CheckpointError(f"{error} (pickle, byte {state.pos})") from None
    except (
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        struct.error,
        OverflowError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(f"The pickle is damaged at byte {state.pos} ({reason}).") from None


def _run(state: State) -> Any:
    data, size, budget = state.data, len(state.data), state.budget
    while state.pos < size:
        code = data[state.pos]
        state.pos += 1
        budget.spend(1)
        if code == 0x2E:  # STOP
            return state.pop()
        handler = _HANDLERS.get(code)
        if handler is None:
            raise CheckpointError(_refused_opcode(code))
        handler(state)
    raise CheckpointError("The pickle has no end: the file is truncated.")


def _refused_opcode(code: int) -> str:
    names = {0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x69: "INST", 0x6F: "OBJ", 0x92: "NEWOBJ_EX"}
    names |= {0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER"}
    if code in names:
        return (
            f"The pickle uses the opcode {names[code]}, which checkpoints do not need; the file was not read."
        )
    return f"The pickle has the unknown opcode 0x{code:02x}: the file is damaged or no checkpoint."


# --- globals: the only way a pickle can name code, and here only a key of a table -----------------
def _global(state: State) -> None:
    module = str(state.line(1024), "utf-8")
    name = str(state.line(1024), "utf-8")
    state.stack.append(_find(module, name))


def _stack_global(state: State) -> None:
    name = state.pop()
    module = state.pop()
    if type(name) is not str or type(module) is not str:
        raise CheckpointError("The pickle names a global by something that is not a string.")
    state.stack.append(_find(module, name))


def _find(module: str, name: str) -> Name:
    full = f"{module}.{name}"
    if full in CALLS:
        return Name("call", full)
    if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
        return Name("storage", name)
    if module == "torch" and name in TORCH_DTYPES:
        return Name("dtype", name)
    if full in ("numpy.ndarray", "torch.strided", "torch.nn.parameter.Parameter"):
        return Name("token", full)
    is_builtin = module in ("builtins", "__builtin__")
    if module.partition(".")[0] in _RUNS_MODULES or (is_builtin and name.partition(".")[0] in _RUNS_BUILTINS):
        raise CheckpointError(
            f"The pickle asks for {full[:200]!r}, which runs something and is not on the list of things a checkpoint "
            "needs. Nothing was executed. If the file is yours, save the state dict alone: "
            "torch.save({'model': model.state_dict()}, path)."
        )
    return Name("inert", full[:LAZY_BYTES])


def _reduce(state: State) -> None:
    args = state.pop()
    function = state.pop()
    if not isinstance(function, (Name, Inert)) or not isinstance(args, tuple):
        raise CheckpointError(f"The pickle calls a {kind(function)}.")
    if isinstance(function, Inert) or function.kind == "inert":
        state.stack.append(Inert(function.name))
    elif function.kind == "call":
        state.stack.append(CALLS[function.name](state, *args))
    else:
        raise CheckpointError(f"The pickle calls {function.name}, which is not allowed.")


def _new_object(state: State) -> None:
    state.pop()
    _make(state, state.pop(), "")


def _new_object_ex(state: State) -> None:
    state.pop()
    state.pop()
    _make(state, state.pop(), _refused_opcode(0x92))


def _instance(state: State) -> None:
    """INST of protocol 0: the class by name, its arguments from the mark."""
    module, name = str(state.line(1024), "utf-8"), str(state.line(1024), "utf-8")
    state.pop_mark()
    _make(state, _find(module, name), _refused_opcode(0x69))


def _object(state: State) -> None:
    """OBJ of protocol 1: the class and its arguments from the mark."""
    items = state.pop_mark()
    _make(state, items[0], _refused_opcode(0x6F))


def _make(state: State, cls: Any, refusal: str) -> None:
    """A placeholder for an object of ``cls``; of the known classes only an empty OrderedDict is made so."""
    if not isinstance(cls, (Name, Inert)):
        raise CheckpointError(f"The pickle makes an object of a {kind(cls)}.")
    if isinstance(cls, Inert) or cls.kind == "inert":
        state.stack.append(Inert(cls.name))
    elif cls.name == "collections.OrderedDict" and not refusal:
        state.stack.append(Dict())
    else:
        raise CheckpointError(refusal or f"The pickle makes an object of {cls.name}, which is not allowed.")


def _build(state: State) -> None:
    value = state.pop()
    target = state.stack[-1]
    if isinstance(target, ArrayShell):
        fill(state, target, value)
    elif isinstance(target, Dtype):
        target.problem = target.problem or _dtype_problem(value)
    elif isinstance(target, Dict):
        target.attributes = value
    elif not isinstance(target, (Inert, TensorRef)):
        raise CheckpointError(f"The pickle sets the state of a {kind(target)}.")


def _persistent(state: State) -> None:
    key = state.pop()
    if state.persistent is None:
        raise CheckpointError(
            "The pickle refers to data outside of itself (persistent id), which is refused here."
        )
    state.stack.append(state.persistent(key))


_HANDLERS: dict[int, Callable[[State], None]] = {
    **STACK,
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _new_object,
    0x92: _new_object_ex,
    ord("i"): _instance,
    ord("o"): _object,
    ord("b"): _build,
    ord("Q"): _persistent,
}
