"""Asking the admin endpoint of a running product."""

import http.client
import json
import re
import socket
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from support.product import Product
from support.waiting import PATIENCE, wait_for

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Answer(NamedTuple):
    """An answer of the endpoint."""

    status: int
    headers: dict[str, str]
    body: bytes


def address(product: Product) -> str:
    """Where the endpoint of *product* is: HOST:PORT, or a path."""
    found = re.findall(r'"address":"([^"]+)","event":"admin endpoint"', product.log.read_text())
    return str(found[-1])


def ask(product: Product, path: str, *, method: str = "GET", **headers: str) -> Answer:
    """Ask the endpoint of *product*."""
    where = address(product)
    connection = http.client.HTTPConnection("localhost" if "/" in where else where, timeout=PATIENCE)
    if "/" in where:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(where)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def ask_json(product: Product, path: str) -> Any:
    """What the endpoint answers, as JSON."""
    return json.loads(ask(product, path).body)


def metrics(product: Product) -> Samples:
    """All samples: name and labels to value."""
    text = ask(product, "/metrics").body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """One sample."""
    return samples[f"shardgate_{name}", frozenset(labels.items())]


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all samples of a name that have these labels."""
    wanted = set(labels.items())
    return sum(n for (found, has), n in samples.items() if found == f"shardgate_{name}" and wanted <= has)


def wait_for_metrics(product: Product, what: str, condition: Any) -> Samples:
    """The first samples for which *condition* holds: shards report twice a second."""
    last: Samples = {}

    def holds() -> bool:
        nonlocal last
        last = metrics(product)
        return bool(condition(last))

    wait_for(holds, what)
    return last
