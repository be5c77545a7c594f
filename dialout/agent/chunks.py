"""The chunk that a body mutation is about. Values in, values out."""

from typing import Any

from msgspec.structs import replace

from dialout.decisions import BodyMutation, Decision
from dialout.errors import LocalProtocolError
from dialout.events import RequestBodyChunk, ResponseBodyChunk

__all__ = ["at_chunk"]


def at_chunk(decision: Decision, event: Any, *, lenient: bool = False) -> Decision:
    """Return the decision with the index of the event's chunk in body mutations that have none.

    Raises LocalProtocolError for a mutation that is not about ``event``. With ``lenient`` such mutations are left out:
    the answer is then one for events of every kind.
    """
    request, response = decision.request_body_mutation, decision.response_body_mutation
    if request is None and response is None:
        return decision
    return replace(
        decision,
        request_body_mutation=_about(request, event, RequestBodyChunk, lenient=lenient),
        response_body_mutation=_about(response, event, ResponseBodyChunk, lenient=lenient),
    )


def _about(
    mutation: BodyMutation | None,
    event: Any,
    kind: type[RequestBodyChunk | ResponseBodyChunk],
    *,
    lenient: bool,
) -> BodyMutation | None:
    if mutation is None:
        return None
    index = event.chunk_index if type(event) is kind else None
    if index is not None and mutation.chunk_index in {None, index}:
        return BodyMutation(mutation.data, index)
    if lenient:
        return None
    if index is None:
        raise LocalProtocolError(f"this body mutation answers a {kind.__name__}, and the event is none")
    raise LocalProtocolError(f"the event is chunk {index}, and the mutation names chunk {mutation.chunk_index}")
