"""Agents that are there to be connected, and allow what they are asked."""

from dialout import ALLOWED, Agent, Decision, RequestHeaders


def allows() -> Agent:
    """An agent with one hook, which allows; further ones may be decorated."""
    agent = Agent()

    @agent.hook
    def on_request_headers(event: RequestHeaders) -> Decision:
        return ALLOWED

    return agent
