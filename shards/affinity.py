"""Bounded tables that forget: which connection saw a request's headers, and which one a session sticks to. Pure."""

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class RecentTable(Generic[Key, Value]):
    """At most *capacity* entries, each until a `sweep` finds that it was last used more than *idle* seconds ago.

    Beyond the capacity the entry that was used longest ago goes: a table that turned away the newest instead would stop
    working for everybody once it is full of requests that nobody finished. Whatever goes is returned to whoever made it
    go, so that nothing is forgotten that has to be ended.
    """

    __slots__ = ("_capacity", "_entries", "_idle")

    def __init__(self, capacity: int, idle: float) -> None:
        self._capacity = capacity
        self._idle = idle
        self._entries: dict[Key, tuple[Value, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: Key, value: Value, now: float) -> Value | None:
        """Set an entry, as used now; returns the value of another one that had to go for it."""
        entries, dropped = self._entries, None
        entries.pop(key, None)
        if len(entries) >= self._capacity:
            dropped, _ = entries.pop(next(iter(entries)))
        entries[key] = (value, now)
        return dropped

    def get(self, key: Key, now: float) -> Value | None:
        """An entry, used now; None when there is none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = (entry[0], now)
        return entry[0]

    def pop(self, key: Key) -> Value | None:
        """Remove an entry and return it."""
        entry = self._entries.pop(key, None)
        return None if entry is None else entry[0]

    def remove(self, key: Key, value: Value) -> None:
        """Remove an entry, unless it has another value by now."""
        entry = self._entries.get(key)
        if entry is not None and entry[0] is value:
            del self._entries[key]

    def take_all(self) -> list[Value]:
        """Remove and return everything."""
        values = [value for value, _ in self._entries.values()]
        self._entries.clear()
        return values

    def sweep(self, now: float) -> list[Value]:
        """Remove and return what was idle for too long."""
        gone = []
        while self._entries:
            key = next(iter(self._entries))
            value, used = self._entries[key]
            if now - used <= self._idle:
                break
            del self._entries[key]
            gone.append(value)
        return gone
