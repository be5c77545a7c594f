"""Bounded tables with expiry, for the requests of a proxy and for sticky sessions. Pure."""

from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class RecentTable(Generic[Key, Value]):
    """At most *capacity* entries; `sweep` removes the entries that were last used more than *idle* seconds ago.

    A new entry beyond the capacity displaces the one that was used longest ago. A table that refused new entries
    instead would stop working once it is full of unfinished requests. Methods return the entries that they remove, so
    that the caller can end the requests behind them.
    """

    __slots__ = ("_capacity", "_entries", "_idle")

    def __init__(self, capacity: int, idle: float) -> None:
        self._capacity = capacity
        self._idle = idle
        self._entries: dict[Key, tuple[Value, float]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: Key, value: Value, now: float) -> Value | None:
        """Set an entry and mark it as used now; returns the value of the entry that it displaced."""
        entries, dropped = self._entries, None
        entries.pop(key, None)
        if len(entries) >= self._capacity:
            dropped, _ = entries.pop(next(iter(entries)))
        entries[key] = (value, now)
        return dropped

    def get(self, key: Key, now: float) -> Value | None:
        """Return an entry and mark it as used now; None if there is none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._entries[key] = (entry[0], now)
        return entry[0]

    def pop(self, key: Key) -> Value | None:
        """Remove an entry and return it; None if there is none."""
        entry = self._entries.pop(key, None)
        return None if entry is None else entry[0]

    def remove(self, key: Key, value: Value) -> None:
        """Remove an entry, unless it has another value by now."""
        entry = self._entries.get(key)
        if entry is not None and entry[0] is value:
            del self._entries[key]

    def take_all(self) -> list[Value]:
        """Remove all entries and return their values."""
        values = [value for value, _ in self._entries.values()]
        self._entries.clear()
        return values

    def sweep(self, now: float) -> list[Value]:
        """Remove the entries that were idle for too long, and return their values."""
        gone = []
        while self._entries:
            key = next(iter(self._entries))
            value, used = self._entries[key]
            if now - used <= self._idle:
                break
            del self._entries[key]
            gone.append(value)
        return gone
