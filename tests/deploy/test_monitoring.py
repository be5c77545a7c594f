"""Alerts and dashboard are about metrics that exist, with labels that they have."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.agents import Agent
from support.product import StartProduct

Tool = Callable[[str], str]
NAME = re.compile(r"\bshardgate_[a-z_]+\b")
GROUPED = re.compile(r"\bby \(([a-z, ]+)\)")
MATCHED = re.compile(r"(shardgate_[a-z_]+)\{([^}]*)\}")
# What Prometheus adds to everything that it scrapes, and what histograms are made of.
EVERYWHERE = {"instance", "job", "le"}


def alerts(deploy: Path) -> str:
    return (deploy / "monitoring/alerts.yml").read_text()


def expressions(deploy: Path) -> list[str]:
    """All expressions of the dashboard."""
    dashboard = json.loads((deploy / "monitoring/dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return found + [one["expr"] for one in dashboard["annotations"]["list"]]


@pytest.fixture
def metrics(start_product: StartProduct) -> dict[str, set[str]]:
    """The metrics of a running shardgate, with the labels of each."""
    product = start_product("--admin", "127.0.0.1:0", shards=1)
    found = re.search(r"127\.0\.0\.1:\d+", product.log.read_text())
    assert found is not None
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        with urllib.request.urlopen(f"http://{found[0]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    names: dict[str, set[str]] = {}
    for kind in re.findall(r"^# TYPE (\w+) \w+$", text, re.MULTILINE):
        names.setdefault(kind, set())
    for name, labels in re.findall(r"^(\w+)(?:\{([^}]*)\})? ", text, re.MULTILINE):
        names.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return names


def test_alerts_are_rules_of_prometheus(deploy: Path, tool: Tool) -> None:
    path = str(deploy / "monitoring/alerts.yml")
    done = subprocess.run([tool("promtool"), "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_expressions_of_the_dashboard_are_expressions_of_prometheus(deploy: Path, tmp_path: Path, tool: Tool) -> None:
    # promtool 2.42 checks expressions in rules only.
    rules = tmp_path / "rules.yml"
    lines = ["groups:", "- name: dashboard", "  rules:"]
    for number, expression in enumerate(expressions(deploy)):
        plain = expression.replace("$__rate_interval", "5m").replace("$instance", "a")
        lines += [f"  - record: panel:{number}", f"    expr: {json.dumps(plain)}"]
    rules.write_text("\n".join(lines))
    done = subprocess.run([tool("promtool"), "check", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_and_dashboard_use_metrics_that_exist_with_labels_that_they_have(
    deploy: Path, metrics: dict[str, set[str]]
) -> None:
    for text in [alerts(deploy), *expressions(deploy)]:
        for name in NAME.findall(text):
            assert name in metrics, f"{name} in {text}"
        for name, matchers in MATCHED.findall(text):
            used = set(re.findall(r"(\w+)\s*[=!]~?", matchers)) - EVERYWHERE
            # A counter of something that has not happened has no series yet.
            assert used <= metrics[name] or not metrics[name], f"{used} of {name} in {text}"
        for group in GROUPED.findall(text):
            wanted = set(group.replace(" ", "").split(",")) - EVERYWHERE
            available: set[str] = set().union(*(metrics[name] for name in NAME.findall(text)))
            assert wanted <= available, f"{wanted} in {text}"


FIRING = """
rule_files: [{alerts}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: 'up{{job="shardgate", instance="gone"}}', values: '1x5 0x20'}}
      - {{series: 'up{{job="shardgate", instance="here"}}', values: '1x30'}}
      - {{series: 'shardgate_ready{{job="shardgate", instance="gone"}}', values: '1x5 stale'}}
      - {{series: 'shardgate_ready{{job="shardgate", instance="here"}}', values: '1x5 0x20'}}
      - {{series: 'shardgate_shards{{instance="here", state="running"}}', values: '2x5 1x20'}}
      - {{series: 'shardgate_shards{{instance="here", state="down"}}', values: '0x5 1x20'}}
      - {{series: 'shardgate_shards_wanted{{instance="here"}}', values: '2x30'}}
    alert_rule_test:
      - {{eval_time: 4m, alertname: ShardgateDown, exp_alerts: []}}
      - {{eval_time: 4m, alertname: ShardgateNotReady, exp_alerts: []}}
      - {{eval_time: 4m, alertname: ShardgateShardsMissing, exp_alerts: []}}
      - eval_time: 10m
        alertname: ShardgateDown
        exp_alerts: [{{exp_labels: {{severity: page, job: shardgate, instance: gone}}, exp_annotations: {down}}}]
      - eval_time: 10m
        alertname: ShardgateNotReady
        exp_alerts: [{{exp_labels: {{severity: page, job: shardgate, instance: here}}, exp_annotations: {not_ready}}}]
      - eval_time: 15m
        alertname: ShardgateShardsMissing
        exp_alerts: [{{exp_labels: {{severity: warning, instance: here}}, exp_annotations: {missing}}}]
"""


def test_alerts_fire_for_the_host_that_is_meant_and_for_no_other(deploy: Path, tool: Tool, tmp_path: Path) -> None:
    rules = {rule["alert"]: rule["annotations"] for rule in yaml.safe_load(alerts(deploy))["groups"][0]["rules"]}

    def told(name: str, **labels: object) -> str:
        """The annotations of an alert with their templates filled in, as JSON, which is YAML."""
        text = json.dumps(rules[name])
        for label, value in labels.items():
            text = text.replace(f"{{{{ $labels.{label} }}}}", str(value)).replace(f"{{{{ ${label} }}}}", str(value))
        return text

    test = tmp_path / "test.yml"
    test.write_text(
        FIRING.format(
            alerts=deploy / "monitoring/alerts.yml",
            down=told("ShardgateDown", instance="gone"),
            not_ready=told("ShardgateNotReady", instance="here"),
            missing=told("ShardgateShardsMissing", instance="here", value=1),
        )
    )
    done = subprocess.run([tool("promtool"), "test", "rules", str(test)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_name_runbooks_that_exist(deploy: Path) -> None:
    titles = {line[3:].lower() for line in (deploy / "RUNBOOKS.md").read_text().splitlines() if line.startswith("## ")}
    named = set(re.findall(r"Runbook: ([a-z ]+)\.", alerts(deploy)))
    assert named
    assert named <= titles


def test_dashboard_is_laid_out_without_gaps_and_overlaps(deploy: Path) -> None:
    dashboard: dict[str, Any] = json.loads((deploy / "monitoring/dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
