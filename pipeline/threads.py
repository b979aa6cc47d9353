"""Several files at a time: a store may answer late, and compressing leaves Python to others."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

READ_AHEAD = 8
"""How many files are read while one is used."""

AT_ONCE = 4
"""How many files of a shard, or of a result, are read or written at a time."""

Item = TypeVar("Item")
Made = TypeVar("Made")


def at_once(function: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """Call `function` with every item, several at a time, and wait for all; what it returned, in order."""
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), AT_ONCE), "file") as pool:
        return list(pool.map(function, items))


def read_ahead(read: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Call `read` with every item, in order, on threads that are `READ_AHEAD` items ahead."""
    upcoming: deque[Future[Made]] = deque()
    rest = iter(items)
    pool = ThreadPoolExecutor(READ_AHEAD, "staged")
    try:
        while True:
            upcoming.extend(pool.submit(read, item) for item in islice(rest, READ_AHEAD - len(upcoming)))
            if not upcoming:
                return
            yield upcoming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
