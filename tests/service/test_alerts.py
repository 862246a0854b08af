"""The files of deploy/prometheus: alerts on metrics that the service has, described in the guide."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from cskt.service.batching import Pool
from cskt.service.monitoring import Metrics

REPOSITORY = Path(__file__).parents[2]
PROMETHEUS = REPOSITORY / "deploy" / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


def test_alerts_use_metrics_of_the_service() -> None:
    metrics = Metrics()
    Pool("test", metrics, threads=1, max_waiting=1)
    metrics.requests.labels("/", "GET", "200").inc()
    metrics.request_seconds.labels("/").observe(1.0)
    known = set(re.findall(r"^(cskt_\w+)", metrics.text().decode(), re.MULTILINE))
    used = {name for rule in RULES for name in re.findall(r"cskt_\w+", rule["expr"])}
    assert len(used) > 5 and used <= known


def test_every_alert_is_in_the_guide() -> None:
    guide = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in RULES] == re.findall(r"^\| `(Cskt\w+)`", guide, re.MULTILINE)
    assert "alerts.yml" in (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")
