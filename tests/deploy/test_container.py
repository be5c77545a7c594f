"""The image is described well, what it is built from is all there, and shardgate behaves as the first process."""

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.agents import Agent
from support.product import Product, StartProduct, environment
from support.waiting import wait_for

Tool = Callable[[str], str]


def yaml_of(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_linter_finds_nothing_wrong_with_the_image(deploy: Path, tool: Tool) -> None:
    containerfile = deploy / "container/Containerfile"
    done = subprocess.run([tool("hadolint"), str(containerfile)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    worse = containerfile.read_text().replace("USER 65532:65532\n", "RUN cd /tmp && sudo true\n")
    done = subprocess.run([tool("hadolint"), "-"], input=worse, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3004" in done.stdout


def test_image_is_nobody_in_particular_and_stops_by_the_right_signal(deploy: Path) -> None:
    lines = (deploy / "container/Containerfile").read_text().replace("\\\n", " ").splitlines()
    last = [line for line in lines if line][-20:]
    assert "USER 65532:65532" in last
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "shardgate"]' in last
    assert "STOPSIGNAL SIGTERM" in last
    assert sum(line.startswith("FROM ") for line in lines) == 2
    assert any(line.startswith("HEALTHCHECK ") and "shardgate status" in line for line in last)


def test_build_context_is_what_the_distributions_are_built_from(deploy: Path) -> None:
    root = deploy.parent
    kept = {line[1:].rstrip("/") for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert kept == {"pyproject.toml", "dialout", *project["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]}


def test_demonstration_has_what_it_names(deploy: Path) -> None:
    folder = deploy / "container"
    compose = yaml_of(folder / "compose.yaml")
    services = compose["services"]
    assert set(services) == {"listener", "waf", "auth", "prometheus", "grafana"}
    for service in services.values():
        for volume in service.get("volumes", ()):
            assert (folder / volume.split(":")[0]).is_file(), volume
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "nothing is published beyond this host"
        assert set(service["networks"]) <= set(compose["networks"])
    assert (folder / services["listener"]["build"]["context"] / services["listener"]["build"]["dockerfile"]).is_file()
    # What scrapes, and what is scraped.
    (target,) = yaml_of(folder / "prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in services
    assert f'listen "0.0.0.0:{port}"' in (folder / "shardgate.kdl").read_text()
    assert yaml_of(folder / "grafana.yml")["datasources"][0]["url"] == "http://prometheus:9090"
    # The end takes ten seconds at most.
    assert services["listener"]["stop_grace_period"] == "30s"


def test_prometheus_accepts_its_configuration(deploy: Path, tool: Tool) -> None:
    path = str(deploy / "container/prometheus.yml")
    done = subprocess.run(
        [tool("promtool"), "check", "config", "--syntax-only", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def commands_of_agents(deploy: Path) -> list[list[str]]:
    services = yaml_of(deploy / "container/compose.yaml")["services"]
    return [services[name]["command"] for name in ("waf", "auth")]


def test_demonstration_agents_are_started_with_options_that_exist(deploy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dialout", "--help"],
        capture_output=True, text=True, check=False, env=environment(), timeout=120,
    )  # fmt: skip
    for command in commands_of_agents(deploy):
        assert all(word in done.stdout for word in command if word.startswith("--"))


# As the first process of a container: without a parent, and with no signal that has a default.


def first_process(tool: Tool, *init: str) -> tuple[str, ...]:
    """What runs a command as process 1 of a pid namespace."""
    as_user = () if os.geteuid() == 0 else ("--user", "--map-current-user")
    prefix = (tool("unshare"), *as_user, "--pid", "--fork", "--mount-proc", "--kill-child", *init)
    done = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no pid namespace can be made here: {done.stderr.strip()}")
    return prefix


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# As a health check that is killed for its slowness: its children become process 1's.
LEAVING = ("/bin/sh", "-c", '(sleep 1 & sleep 1 &); exec "$@"', "sh")


def test_shardgate_stops_in_order_under_the_init_of_the_image_which_collects_what_is_left_behind(
    start_product: StartProduct, tool: Tool
) -> None:
    product = start_product(prefix=first_process(tool, tool("tini"), "--", *LEAVING), shards=1, wait=False)
    (first,) = wait_for(lambda: children(product.process.pid), "process 1")
    wait_for(lambda: len(children(first)) == 3, "the two that were left behind")
    wait_for(lambda: '"event":"ready"' in product.log.read_text(), "the product to run", timeout=20)
    # A zombie would still be among them.
    wait_for(lambda: len(children(first)) == 1, "only shardgate to be left")
    stops_in_order(product, first)


def test_shardgate_stops_in_order_as_the_first_process(start_product: StartProduct, tool: Tool) -> None:
    product = start_product(prefix=first_process(tool), shards=1, wait=False)
    wait_for(lambda: '"event":"ready"' in product.log.read_text(), "the product to run", timeout=20)
    (first,) = children(product.process.pid)
    os.kill(first, signal.SIGUSR2)
    wait_for(lambda: "process 1 cannot be replaced" in product.log.read_text(), "a word about it")
    stops_in_order(product, first)


def stops_in_order(product: Product, first: int) -> None:
    with Agent(product.socket) as agent:
        assert agent.register("a").accepted
        # What docker stop does.
        os.kill(first, signal.SIGTERM)
        assert agent.at_end()
    assert product.process.wait(20) == 0
    assert '"event":"stopped"' in product.log.read_text().splitlines()[-1]
