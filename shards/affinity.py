"""Bounded tables that forget: which connection saw a request's headers, and which one a session sticks to. Pure."""

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class RecentTable(Generic[Key, Value]):
    """At most *capacity* entries, each for *idle* seconds after it was last used.

    Beyond the capacity the entry that was used longest ago goes, and is counted in *dropped*: a table that turned away
    the newest instead would stop working for everybody once it is full of requests that nobody finished.
    """

    __slots__ = ("_capacity", "_entries", "_idle", "dropped")

    def __init__(self, capacity: int, idle: float) -> None:
        self._capacity = capacity
        self._idle = idle
        self._entries: dict[Key, tuple[Value, float]] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: Key, value: Value, now: float) -> None:
        """Set an entry, as used now."""
        self._entries.pop(key, None)
        if len(self._entries) >= self._capacity:
            del self._entries[next(iter(self._entries))]
            self.dropped += 1
        self._entries[key] = (value, now)

    def get(self, key: Key, now: float) -> Value | None:
        """An entry, used now; None when there is none, or it was idle for too long."""
        entry = self._entries.pop(key, None)
        if entry is None or now - entry[1] > self._idle:
            return None
        self._entries[key] = (entry[0], now)
        return entry[0]

    def pop(self, key: Key) -> Value | None:
        """Remove an entry and return it."""
        entry = self._entries.pop(key, None)
        return None if entry is None else entry[0]

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
