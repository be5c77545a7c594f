"""One queue of configurations for each agent, shared by all its connections.

All connections of an agent bring the same configurations, at slightly different times. The agent has one state, so
``on_configure`` runs once for each configuration, and calls do not overlap. If several configurations wait, only the
newest is applied. A late copy of an earlier configuration does not replace a newer one.
"""

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from dialout.agent.request import Request
from dialout.agent.telling import described, said
from dialout.decisions import ALLOWED, Allow, Block, Decision
from dialout.errors import LocalProtocolError
from dialout.events import Configure

if TYPE_CHECKING:
    from dialout.agent.agent import Agent
    from dialout.agent.hooks import Hook

__all__ = ["Configuring", "Place"]

_log = logging.getLogger("dialout.agent")

_MOST_KNOWN: Final = 16
"""Settled configurations that are remembered. A copy of an older one counts as a new configuration."""


class _Brought:
    """One configuration. Its ``outcome`` is None while it waits or is being applied."""

    __slots__ = ("config", "done", "number", "outcome", "settled_at", "text")

    def __init__(self, number: int, config: Any, text: str) -> None:
        self.number = number
        self.config = config
        self.text = text
        self.outcome: Decision | None = None
        self.settled_at = 0.0
        self.done = asyncio.Event()

    @property
    def is_refused(self) -> bool:
        return self.outcome is not None and type(self.outcome.verdict) is not Allow


class Place:
    """The position of one connection in the order of its agent's configurations.

    ``since`` is the loop's time at which the connection was dialled. A configuration that was refused before that time
    is tried again. ``on_ready`` is called once, with the agent's first configuration.
    """

    def __init__(
        self, queue: "Configuring", hook: "Hook", name: str, since: float, on_ready: Callable[[], None]
    ) -> None:
        self.hook = hook
        self.name = name
        self.since = since
        self.on_ready = on_ready
        self.last = 0
        self._queue = queue

    def bring(self, event: Configure, request: Request) -> Decision | Awaitable[Decision]:
        """Apply a configuration, now or later; returns the answer to it, a block if it is refused."""
        return self._queue.bring(self, event, request)

    def leave(self) -> None:
        """Remove the connection from the queue."""
        self._queue.leave(self)


class Configuring:
    """The configurations of one agent, on one loop at a time."""

    def __init__(self, agent: "Agent") -> None:
        self.is_configured = False
        """Whether a configuration is in force."""
        self._agent = agent
        self._known: list[_Brought] = []
        self._number = 0
        self._places: set[Place] = set()
        self._keepers = 0
        self._in_force = ""
        self._task: asyncio.Task[None] | None = None
        self._next: tuple[_Brought, Place, Configure, Request] | None = None

    def join(self, hook: "Hook", name: str, since: float, on_ready: Callable[[], None]) -> Place:
        """Add a connection, called ``name`` in the log."""
        place = Place(self, hook, name, since, on_ready)
        # The connection may bring the configuration in force at the time of its dialling, or a newer one.
        place.last = max((one.number for one in self._known if one.outcome and one.settled_at < since), default=1) - 1
        self._places.add(place)
        return place

    def leave(self, place: Place) -> None:
        """Remove a connection. The removal of the last one cancels the configuration that is being applied."""
        self._places.discard(place)
        self._give_up_alone()

    def keep(self) -> None:
        """Finish applying a configuration even if there is no connection for a while."""
        self._keepers += 1

    def let_go(self) -> None:
        """Undo one ``keep``."""
        self._keepers -= 1
        self._give_up_alone()

    def bring(self, place: Place, event: Configure, request: Request) -> Decision | Awaitable[Decision]:
        """See ``Place.bring``."""
        # Compared as text: 1, 1.0 and True are equal in Python.
        text = json.dumps(event.config, sort_keys=True)
        found = self._find(place, text)
        if found is None:
            self._number += 1
            found = _Brought(self._number, event.config, text)
            self._known.append(found)
            self._begin(found, place, event, request)
        place.last = found.number
        return found.outcome or self._wait(found)

    def _find(self, place: Place, text: str) -> _Brought | None:
        """The known configuration that ``text`` is a copy of; None if it is a new one."""
        for one in reversed(self._known):
            is_own = one.number <= place.last
            if is_own and (one is not self._known[-1] or one.is_refused):
                return None
            if one.text == text and not (one.is_refused and one.settled_at < place.since):
                return one
        return None

    async def _wait(self, found: _Brought) -> Decision:
        await found.done.wait()
        assert found.outcome is not None
        return found.outcome

    # --- applying ---

    def _begin(self, found: _Brought, place: Place, event: Configure, request: Request) -> None:
        if self._task is not None and self._task.get_loop() is not asyncio.get_running_loop():
            self._task = None  # Left over from a loop that was stopped.
        if self._task is None:
            self._apply(found, place, event, request)
        else:
            self._next = (found, place, event, request)

    def _apply(self, found: _Brought, place: Place, event: Configure, request: Request) -> None:
        if self.is_configured and found.text == self._in_force:
            self._settle(found, ALLOWED)
            return
        try:
            variables = copy_context()
            result = variables.run(place.hook.call, event, request)
            if inspect.isawaitable(result):
                loop = asyncio.get_running_loop()
                self._task = loop.create_task(self._finish(found, place, request, result), context=variables)
                return
        except BaseException as error:  # noqa: BLE001 - after any error the configuration is not in force
            self._refuse(found, place, request, error)
        else:
            self._judge(found, place, request, result)

    async def _finish(self, found: _Brought, place: Place, request: Request, given: Awaitable[Any]) -> None:
        """Wait for the hook, then apply the newest configuration that has come meanwhile."""
        try:
            self._judge(found, place, request, await given)
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            if found in self._known:  # Otherwise it was given up with the last connection.
                self._refuse(found, place, request, error)
        self._task = None
        if self._next is not None:
            following, self._next = self._next, None
            self._apply(*following)

    def _judge(self, found: _Brought, place: Place, request: Request, result: object) -> None:
        if result is None:
            result = ALLOWED
        if not issubclass(type(result), Decision):
            self._refuse(found, place, request, TypeError(f"it returned {type(result).__name__}, not a Decision"))
            return
        assert isinstance(result, Decision)
        verdict = result.verdict
        if type(verdict) is Block:
            why = LocalProtocolError(f"the agent refuses it: {verdict.body or 'no reason given'}")
            self._complain(place, request, why)
        elif type(verdict) is not Allow:
            self._refuse(found, place, request, TypeError("it neither takes the configuration nor refuses it"))
            return
        self._settle(found, result)

    def _refuse(self, found: _Brought, place: Place, request: Request, error: BaseException) -> None:
        """Settle a configuration that the hook failed on, with the reason as a block.

        The agent's own failure answer is not used here.
        """
        self._agent.counters.errored += 1
        self._settle(found, Decision.block(500, said(error)))
        self._complain(place, request, error)

    def _complain(self, place: Place, request: Request, error: BaseException) -> None:
        came = request.request_id is None and request.correlation_id is None
        what = "the configuration that came with the registration" if came else "a configuration that was pushed"
        _log.error("%s: applying %s failed: %s", place.name, what, described(error))

    def _settle(self, found: _Brought, outcome: Decision) -> None:
        """Set the outcome of a configuration and of all earlier ones that were never applied."""
        is_taken = type(outcome.verdict) is Allow
        if is_taken:
            self._agent.configuration, self._in_force = found.config, found.text
        now = asyncio.get_running_loop().time()
        for one in self._known:
            if one.outcome is None and one.number <= found.number:
                one.outcome, one.settled_at = outcome, now
                one.done.set()
        while len(self._known) > _MOST_KNOWN and self._known[0].outcome is not None:
            del self._known[0]
        if is_taken and not self.is_configured:
            self.is_configured = True
            for place in tuple(self._places):
                place.on_ready()

    def _give_up_alone(self) -> None:
        if self._places or self._keepers:
            return
        if self._task is not None:
            self._task.cancel()
        self._next = None
        # The connections that waited for it are gone. The next connection brings it anew.
        self._known = [one for one in self._known if one.outcome is not None]
