"""Which of detectron2's keys a misspelt one was meant to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from tf_d2.config.defaults import INFERENCE, KEYS, SECTIONS


@lru_cache(maxsize=1)
def _by_depth() -> Mapping[int, tuple[tuple[str, ...], ...]]:
    depths: dict[int, list[tuple[str, ...]]] = {}
    for key in KEYS:
        parts = tuple(key.split("."))
        depths.setdefault(len(parts), []).append(parts)
    return {depth: tuple(keys) for depth, keys in depths.items()}


def misspelt(key: str) -> list[str]:
    """The keys of detectron2 that ``key`` is a near miss of: letters wrong at any level, or a level too few or many."""
    if "MODEL." + key in KEYS or ("MODEL." + key.rpartition(".")[0] in SECTIONS and "." in key):
        known = "MODEL." + key
        return [known] if known in KEYS else [f"{known.rpartition('.')[0]}.*"]
    if key.startswith("MODEL.") and key[6:] in KEYS:
        return [key[6:]]
    leaf = key.rpartition(".")[2]
    if "." not in key and "_" in leaf and leaf != "NUM_CLASSES":
        deep = [known for known in INFERENCE if known.endswith("." + leaf)]
        if deep:
            return deep[:3]
    parts = tuple(key.split("."))
    found = []
    for known in _by_depth().get(len(parts), ()):
        pairs = [(a, b) for a, b in zip(parts, known, strict=True) if a != b]
        if len(pairs) <= 2 and all(_near(a, b) for a, b in pairs):
            found.append((sum(_distance(a, b) for a, b in pairs), ".".join(known)))
    return [name for _, name in sorted(found)[:3]]


def _near(a: str, b: str) -> bool:
    """Whether two names are one but for a slip: letters, the order of words, capitals."""
    if a.upper() == b.upper():
        return True
    if re.sub(r"\d", "", a) == re.sub(r"\d", "", b):
        return False  # another number is another thing
    words, others = a.upper().split("_"), b.upper().split("_")
    if sorted(words) == sorted(others):
        return len(words) > 1
    if set(words) < set(others) or set(others) < set(words):
        return False  # a word more or less makes another name
    if len(words) == len(others):
        unlike = [(x, y) for x, y in zip(words, others, strict=True) if x != y]
        return all(_slip(x, y) for x, y in unlike) and len(unlike) <= 2
    return min(len(a), len(b)) > 5 and _distance(a.upper(), b.upper()) <= 2


def _slip(a: str, b: str) -> bool:
    least = min(len(a), len(b))
    if least >= 4 and (a.startswith(b) or b.startswith(a)):
        return True  # THRESH, THRESHOLD
    return (_distance(a, b) <= (0 if least < 3 else 1 if least < 6 else 2) and a[:1] == b[:1]) or (
        least >= 4 and _distance(a, b) == 1
    )


def _distance(a: str, b: str) -> int:
    """Letters inserted, deleted, replaced, or swapped with their neighbour."""
    if abs(len(a) - len(b)) > 8:
        return 99
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]
