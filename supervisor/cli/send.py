"""``shardgate send``: sends a request to an agent, as a proxy does, and prints the decision."""

import time
from typing import Any, BinaryIO

import click
import msgspec

from dialout import (
    NO_AUDIT,
    Allow,
    Audit,
    HeaderOp,
    Headers,
    RequestBodyChunk,
    RequestHeaders,
    headers_from_pairs,
    is_agent_id,
    to_json_value,
)
from dialout.proxy.errors import CannotReceive, PoolError
from dialout.proxy.wire import RELAYED, Answer
from ipc.rundir import RuntimeDir
from ipc.schema import SCHEMA
from ipc.status_dir import READS_ONLY
from supervisor import words
from supervisor.cli import asking, output
from supervisor.cli.errors import CommandError, ExitCode
from supervisor.cli.options import examples, json_option, runtime_dir_option, timeout_option
from supervisor.cli.proxy_session import ProxySession, ShardSilent

CHUNK_SIZE = 64 * 1024
MOST_BODY = 64 * 1024 * 1024
"""Most bytes of a body. Agents get it in chunks; this bounds the memory of the command."""

_POLICY = {
    "fail_closed": "the proxy refuses the request itself",
    "fail_open": "the proxy lets the request pass, and no agent has looked at it",
}
"""Effect of a missing decision, by the proxy's policy. The proxy chooses the policy, so both are printed."""


class _BodyMutation(msgspec.Struct):
    """The effect on a chunk of the body. *size* None means that the chunk passes unchanged."""

    chunk_index: int | None
    size: int | None


class _Decided(msgspec.Struct):
    """The decision, with the changes, the audit and the routing metadata of all answers."""

    decision: str | dict[str, Any]
    agent_id: str
    connection_id: str
    shard: int
    asked_shard: int
    relayed: bool
    duration_ms: float
    events: int
    request_headers: list[HeaderOp]
    response_headers: list[HeaderOp]
    body_mutations: list[_BodyMutation]
    audit: Audit
    routing_metadata: dict[str, str]


def _read_headers(_context: click.Context, _parameter: click.Parameter, lines: tuple[str, ...]) -> Headers:
    pairs = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{line!r} is not NAME:VALUE.")
        pairs.append((name.strip(), value.strip()))
    return headers_from_pairs(pairs)


def _read_agent_id(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not is_agent_id(text):
        raise click.BadParameter("an agent id is 1 to 128 of A-Z a-z 0-9 . _ : @ -.")
    return text


@click.command(
    "send",
    short_help="Show an agent a request and print its decision.",
    epilog=examples("shardgate send waf-1 --uri /admin", "shardgate send waf-1 --uri /index.html --json"),
)
@click.argument("agent", callback=_read_agent_id)
@click.option("--method", metavar="METHOD", help="[default: GET, or POST with a body]")
@click.option("--uri", default="/", show_default=True, metavar="URI", help="Path and query of the request.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=_read_headers,
    metavar="NAME:VALUE",
    help="A header of the request; may be repeated.",
)
@click.option("--body", type=click.File("rb"), metavar="FILE", help="The body of the request; - is standard input.")
@click.option("--shard", type=click.IntRange(0), metavar="N", help="Where the request starts, whoever has the agent.")
@timeout_option("5s", "the agent has to decide")
@runtime_dir_option
@json_option
def command(
    agent: str,
    method: str | None,
    uri: str,
    headers: Headers,
    body: BinaryIO | None,
    shard: int | None,
    timeout: float,
    rundir: RuntimeDir,
    as_json: bool,
) -> int:
    """Show AGENT a request, as a proxy would, and print its decision.

    The exit code is 0 for any decision, and 1 when there is none: an error is never an allow.
    """
    content = None if body is None else _read(body)
    event = RequestHeaders(method or ("GET" if body is None else "POST"), uri, headers, has_body=body is not None)
    with _open_session(rundir, agent, shard) as session:
        try:
            decided = _ask(session, event, content, time.monotonic(), timeout)
        except PoolError as error:
            return _report_failure(error, agent, as_json=as_json)
    if as_json:
        output.print_json({"schema": SCHEMA} | msgspec.structs.asdict(decided))
    else:
        _print(decided)
    return ExitCode.OK


def _read(body: BinaryIO) -> bytes:
    try:
        content = body.read(MOST_BODY + 1)
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"the body cannot be read: {error.strerror}") from None
    if len(content) > MOST_BODY:
        raise CommandError(ExitCode.FAILED, f"the body is larger than {words.size(MOST_BODY)}")
    return content


def _open_session(rundir: RuntimeDir, agent_id: str, shard: int | None) -> ProxySession:
    """Open a session with *shard*, or with the first shard that answers."""
    living = asking.living_shards(rundir, shard)
    if living and not any(rundir.shard_proxy(number).exists() for number in living):
        # A status directory has no sockets for proxies.
        raise CommandError(ExitCode.REFUSED, READS_ONLY)
    silent = None
    problem = "no shard is running; see 'shardgate status'"
    for number in living:
        try:
            return ProxySession(rundir.shard_proxy(number), number, agent_id)
        except ShardSilent as error:
            silent = str(error)
        except PoolError as error:
            problem = words.safe(str(error), 300)
    if silent is not None:
        raise CommandError(ExitCode.TIMED_OUT, f"{silent}; see 'shardgate status'")
    raise CommandError(ExitCode.NOT_REACHABLE, problem)


def _ask(session: ProxySession, event: RequestHeaders, body: bytes | None, started: float, timeout: float) -> _Decided:
    """Send the headers, then the body chunk by chunk, until the agent decides otherwise than allow or the body ends."""
    deadline = started + timeout
    answers = [session.ask(event, deadline, final=body is None)]
    if body is not None:
        for chunk in _chunks(body):
            if _is_final(answers[-1]):
                break
            try:
                answers.append(session.ask(chunk, deadline, final=chunk.is_last))
            except CannotReceive:
                if answers[-1].response.verdict is None:
                    raise
                break  # The agent takes no bodies, so its decision about the headers is final.
        session.finish()
    return _summary(answers, session.shard, time.monotonic() - started)


def _chunks(body: bytes) -> list[RequestBodyChunk]:
    starts = range(0, len(body), CHUNK_SIZE) or (0,)
    return [
        RequestBodyChunk(n, body[start : start + CHUNK_SIZE], start + CHUNK_SIZE >= len(body), len(body), start)
        for n, start in enumerate(starts)
    ]


def _is_final(answer: Answer) -> bool:
    # An allow of the headers or of a chunk is not final: a later chunk may still be blocked.
    return answer.response.verdict is not None and not isinstance(answer.response.verdict, Allow)


def _summary(answers: list[Answer], asked_shard: int, seconds: float) -> _Decided:
    last = answers[-1]
    decision = to_json_value(last.response.verdict)
    routing: dict[str, str] = {}
    for answer in answers:
        routing |= answer.response.routing_metadata
    mutations = [answer.response.request_body_mutation for answer in answers]
    return _Decided(
        decision=decision,
        agent_id=last.agent_id,
        connection_id=last.connection_id,
        shard=last.shard,
        asked_shard=asked_shard,
        relayed=bool(last.flags & RELAYED),
        duration_ms=round(seconds * 1000, 3),
        events=len(answers),
        request_headers=[op for answer in answers for op in answer.response.request_headers],
        response_headers=[op for answer in answers for op in answer.response.response_headers],
        body_mutations=[
            _BodyMutation(found.chunk_index, None if found.data is None else len(found.data))
            for found in mutations
            if found is not None
        ],
        audit=last.response.audit,
        routing_metadata=routing,
    )


# Text output. Every text of an agent goes through `words.safe`.


def _print(decided: _Decided) -> None:
    where = f"{words.safe(decided.connection_id, words.LONGEST_CONNECTION_ID)}, shard {decided.shard}"
    if decided.relayed:
        where += f", asked by shard {decided.asked_shard}"
    click.echo(f"{_sentence(decided.decision)}  ({where}, {decided.duration_ms:g} ms)")
    for kind, operations in (("request", decided.request_headers), ("response", decided.response_headers)):
        for operation in operations:
            value = "" if operation.value is None else f": {words.safe(operation.value, 300)}"
            click.echo(f"  {operation.operation} {kind} header {words.safe(operation.name)}{value}")
    for mutation in decided.body_mutations:
        change = "passes" if mutation.size is None else f"becomes {words.size(mutation.size)}"
        click.echo(f"  body chunk {mutation.chunk_index} {change}")
    for name, value in decided.routing_metadata.items():
        click.echo(f"  routing {words.safe(name)}: {words.safe(value, 300)}")
    for line in _audit_lines(decided.audit):
        click.echo(f"  {line}")


def _sentence(decision: str | dict[str, Any]) -> str:
    if isinstance(decision, str):
        return decision
    ((kind, fields),) = decision.items()
    if kind == "redirect":
        return f"redirect with status {fields['status']} to {words.safe(fields['url'], 1000)}"
    if kind == "challenge":
        params = fields.get("params")
        return f"challenge {words.safe(fields['challenge_type'])}" + (f" {_json(params)}" if params else "")
    headers = ", ".join(words.safe(name) for name in fields.get("headers") or ())
    said = f"block with status {fields['status']}" + (f", headers {headers}" if headers else "")
    return said if fields.get("body") is None else f'{said}: "{words.safe(fields["body"], 300)}"'


def _audit_lines(audit: Audit) -> list[str]:
    if audit == NO_AUDIT:
        return []
    lines = [
        f"audit {name}: {', '.join(words.safe(value) for value in values)}"
        for name, values in (("tags", audit.tags), ("rules", audit.rule_ids), ("reasons", audit.reason_codes))
        if values
    ]
    if audit.confidence is not None:
        lines.append(f"audit confidence: {audit.confidence:g}")
    if audit.custom:
        lines.append(f"audit custom: {_json(audit.custom)}")
    return lines


def _json(value: object) -> str:
    return words.safe(msgspec.json.encode(value).decode(), 1000)


def _report_failure(error: PoolError, agent_id: str, *, as_json: bool) -> int:
    """Print on standard error that there is no decision of the agent, and its effect in a proxy."""
    text = words.safe(str(error), 500)
    if as_json:
        fields = {
            "schema": SCHEMA,
            "error": text,
            "error_code": str(error.code),
            "agent_id": agent_id,
            "shard": error.shard,
        }
        policy = {} if error.policy is None else {"policy": error.policy}
        output.print_json(fields | {"retry_safe": error.retry_safe, **policy, "failure_policy": _POLICY}, err=True)
        return ExitCode.FAILED
    output.note(f"shardgate: no decision of the agent: {text} (error_code {words.safe(str(error.code))})")
    if error.policy is None:
        output.note(f"fail-closed: {_POLICY['fail_closed']}; fail-open: {_POLICY['fail_open']}")
    else:
        output.note(f"the pool is set to fail-{error.policy}: {_POLICY[f'fail_{error.policy}']}")
    return ExitCode.FAILED
