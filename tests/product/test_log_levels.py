"""What levels mean: an info is as it should be, a warning asks for a look, an error for a hand."""

import json
import signal
from typing import Any

from support.agents import Agent
from support.product import Product, StartProduct
from support.waiting import wait_for


def rows(product: Product) -> list[dict[str, Any]]:
    """All log lines."""
    return [json.loads(line) for line in product.log.read_text().splitlines() if line.startswith("{")]


def test_nothing_that_an_operator_asked_for_is_a_warning(start_product: StartProduct) -> None:
    product = start_product()
    with Agent(product.socket) as first, Agent(product.socket) as second:
        assert first.register("waf-1").accepted
        assert second.register("waf-2").accepted
        for command in (
            ("log-level", "debug"),
            ("drain", "0"),
            ("drain", "0", "--undo"),
            ("rebalance",),
            ("restart", "1"),
            ("scale", "3"),
            ("scale", "2"),
            ("reload",),
            ("kick", "waf-2"),
            ("log-level", "info"),
        ):
            done = product.command(*command)
            assert done.returncode == 0, done.stderr
        product.take_over()
        before = product.process
        before.send_signal(signal.SIGUSR2)
        wait_for(lambda: before.poll() is not None, "the end of the old supervisor", 30)
        wait_for(lambda: product.query("status")["supervisor"]["state"] == "running", "the next one", 30)
        told = rows(product)
        assert [row["event"] for row in told].count("handed over") == 2
        assert [row for row in told if row["level"] not in ("debug", "info")] == []
        # Each process says it once, when it changes; those that were started since are told as they begin.
        assert {row["process"] for row in told if row["event"] == "log level set"} >= {"supervisor", "shard-0"}
        assert product.command("stop").returncode == 0
    product.process = before


def test_signals_to_reload_are_summed_up(start_product: StartProduct) -> None:
    product = start_product()

    def is_summed_up() -> bool:
        product.process.send_signal(signal.SIGHUP)
        return any(row["event"] == "reloads are asked for too often, one stands for all" for row in rows(product))

    wait_for(is_summed_up, "one line for many signals")
