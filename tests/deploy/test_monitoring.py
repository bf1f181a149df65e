"""Alerts and dashboard speak of numbers that the processes really have, and the numbers move."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import telemetry
from worker import standing

ROOT = Path(__file__).resolve().parents[2]
ALERTS = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())
DASHBOARD = json.loads((ROOT / "deploy" / "dashboard.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]


def named(expressions: list[str]) -> set[str]:
    return {name for expression in expressions for name in re.findall(r"\battune_\w+", expression)}


def known() -> set[str]:
    ours = set(standing.NAMES)
    for family in telemetry.REGISTRY.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}[family.type]
        ours |= {family.name + ending for ending in endings}
    return ours


def test_every_number_that_is_spoken_of_is_there() -> None:
    assert named(EXPRESSIONS) <= known()


def test_every_number_is_shown() -> None:
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named(EXPRESSIONS)}
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in known()} == shown


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_brackets_and_quotes_are_closed(expression: str) -> None:
    bare = re.sub(r'"[^"]*"', "", expression)
    for opening, closing in ("()", "[]", "{}"):
        assert bare.count(opening) == bare.count(closing)
    assert '"' not in bare


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_prometheus_finds_every_process_and_the_rules() -> None:
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    (found,) = scrape["scrape_configs"][0]["dns_sd_configs"]
    assert set(found["names"]) < set(compose["services"])
    assert compose["services"]["api"]["environment"]["ATTUNE_METRICS_PORT"] == str(found["port"])
    mounted = {volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]}
    assert set(scrape["rule_files"]) <= mounted
