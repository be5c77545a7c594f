"""An agent's reports on a connection: health and metrics, on request or at intervals."""

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any, Final

from dialout.agent.agent import Agent
from dialout.codec import Codec
from dialout.dialects import Dialect
from dialout.inbound import Health, HealthState, Metrics

__all__ = ["INTERVAL", "Reporter"]

_log = logging.getLogger("dialout.agent")

INTERVAL: Final = 10.0
"""Seconds between the reports that core agents send unasked."""

_BROKEN: Final = Health(HealthState.UNHEALTHY, "the agent cannot say how it is")
_NOT_READY: Final = Health(HealthState.UNHEALTHY, "the agent waits for its configuration")


class Reporter:
    """Sends the reports of one connection, and keeps the tasks that make them.

    An agent with a failing ``health`` is reported as unhealthy, one with failing ``metrics`` with no samples. Both
    failures are logged.
    """

    def __init__(self, agent: Agent, codec: Codec, agent_id: str, send: Callable[[bytes], None]) -> None:
        self._agent = agent
        self._codec = codec
        self._agent_id = agent_id
        self._send = send
        self._tasks: set[asyncio.Task[None]] = set()
        self._drains = False
        self._closed = False

    @property
    def reports_unasked(self) -> bool:
        """Whether the proxy expects reports without asking for them."""
        declared = self._agent.capabilities
        return self._codec.dialect is Dialect.CORE and (declared.health_reporting or declared.metrics_export)

    def report(self) -> None:
        """Send the reports that the agent has declared."""
        declared = self._agent.capabilities
        if declared.health_reporting:
            self.say_health()
        if declared.metrics_export:
            self.say_metrics()

    def say_health(self) -> None:
        """Send the agent's health. Without its required configuration an agent is unhealthy.

        An agent that drains reports nothing else: a proxy would send it new requests again.
        """
        if self._drains:
            self._send_health(Health(HealthState.DRAINING))
        elif self._agent.require_configuration and not self._agent.configuring.is_configured:
            self.say_not_ready()
        else:
            self._say("health", self._send_health, _BROKEN)

    def say_metrics(self) -> None:
        """Send the agent's metrics."""
        self._say("metrics", self._send_metrics, Metrics())

    def say_not_ready(self) -> None:
        """Tell the proxy that the agent cannot serve yet."""
        self._send_health(_NOT_READY)

    def say_draining(self, seconds: float) -> None:
        """Tell a core proxy to send no new requests.

        The other dialects have no such frame. There the drain's ping says it.
        """
        if self._codec.dialect is Dialect.CORE:
            self._drains = True
            self._send_health(Health(HealthState.DRAINING, eta_ms=int(seconds * 1000)))

    def say_refusal(self, why: str) -> None:
        """Tell a core proxy that the configuration in its answer is not in force.

        The other dialects have no such frame.
        """
        if self._codec.dialect is Dialect.CORE:
            self._send(self._codec.encode_config_error(why, timestamp_ms=_now_ms()))

    def look_after(
        self, awaitable: Awaitable[Any], failed: Callable[[BaseException], None], variables: Context | None = None
    ) -> None:
        """Await something in a task until it ends or the connection does. ``failed`` gets an exception."""
        loop = asyncio.get_running_loop()

        async def run() -> None:
            try:
                await awaitable
            except BaseException as error:
                is_ours = self._closed or not loop.is_running()
                if is_ours or isinstance(error, KeyboardInterrupt):
                    raise
                # A CancelledError is the function's own here. The caller logs the error in its own words.
                failed(error)

        task = loop.create_task(run(), context=variables)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Cancel the tasks."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    def _say(self, name: str, send: Callable[[Any], None], instead: Health | Metrics) -> None:
        def failed(error: BaseException) -> None:
            _log.error("%s failed with %s; the proxy is told %s", name, type(error).__name__, type(instead).__name__)
            send(instead)

        async def wait_for(awaitable: Awaitable[Any]) -> None:
            send(await awaitable)

        try:
            variables = copy_context()
            found = variables.run(self._agent.function(name))
            if inspect.isawaitable(found):
                self.look_after(wait_for(found), failed, variables)
            else:
                send(found)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - after any error of the agent's function the proxy gets an answer
            failed(error)

    def _send_health(self, health: Health) -> None:
        self._send(self._codec.encode_health(health, agent_id=self._agent_id, timestamp_ms=_now_ms()))

    def _send_metrics(self, metrics: Metrics) -> None:
        interval_ms = int(INTERVAL * 1000)
        self._send(
            self._codec.encode_metrics(
                metrics, agent_id=self._agent_id, timestamp_ms=_now_ms(), interval_ms=interval_ms
            )
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
