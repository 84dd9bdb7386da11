"""Every alert fires when it should and not when it should not, says what to do, and reads only what a gateway tells."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Struct

from examples.gatewayprocess import GatewayProcess
from examples.redisserver import RedisServer
from tests.conftest import Pem

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "tailrace.rules.yml"
RUNBOOK = ROOT / "docs" / "runbook"
ALERTS = re.findall(r"(?m)^ +- alert: (\w+)$", RULES.read_text())
TIME = "40m"  # after every window and every `for`
SCRAPES = 45  # one a minute


class Case(Struct, frozen=True):
    """``sick`` and ``well``: series of a scrape a minute, in promtool's notation, with the alert and without it."""

    sick: dict[str, str]
    well: dict[str, str]
    labels: dict[str, str]
    summary: str
    severity: str = "ticket"


def gauge(value: float) -> str:
    return f"{value:g}x{SCRAPES}"


def counter(each_minute: float) -> str:
    return f"0+{each_minute:g}x{SCRAPES}"


def one(series: str, sick: float, well: float, labels: dict[str, str], summary: str, severity: str = "ticket") -> Case:
    """A gauge that is to blame by itself."""
    return Case({series: gauge(sick)}, {series: gauge(well)}, labels, summary, severity)


def breaker(series: str, labels: dict[str, str], summary: str, severity: str = "ticket") -> Case:
    """What hangs is tried again and again, so its breaker is half open (1) at some scrapes."""
    return Case({series: "2 2 1 2 " * 12}, {series: f"0x37 2 1 {gauge(0)}"}, labels, summary, severity)


R = {"route": "r"}
ANSWERS = 'tailrace_answers_total{route="r",cache="%s",reason="%s"}'
RESPONSES = 'tailrace_responses_total{route="r",status="%d"}'
DEGRADED = 'tailrace_degraded_total{route="r",failure="unreachable",step="%s"}'
STOOD_IN = 'tailrace_stood_in_total{route="r",step="%s"}'
REFUSALS = 'tailrace_refusals_total{route="r",problem="%s"}'
ROWS = 'tailrace_table_rows_total{table="t",state="%s"}'
SECOND = 'tailrace_second_total{route="r",outcome="%s"}'
WORD = 'tailrace_snapshot_word{route="r",state="%s",worker="%d"}'
REJECTED = 'tailrace_snapshot_rejected_total{reason="%s"}'
SHED = 'tailrace_shed_total{backend="b",model="m",reason="%s",priority="%s"}'
REPLICA = '{backend="b",replica="http://one",worker="%d"}'
OF_REPLICA = {"backend": "b", "replica": "http://one"}

CASES = {
    "TailraceErrors": Case(
        {RESPONSES % 200: counter(95), RESPONSES % 503: counter(5)},
        {RESPONSES % 200: counter(999), RESPONSES % 503: counter(1), RESPONSES % 429: counter(500)},
        R,
        "r answers 5% of requests with a 5xx",
        "page",
    ),
    "TailraceInternalErrors": Case(
        {REFUSALS % "internal": f"_x30 {gauge(1)}"},  # its first one, and no more
        {REFUSALS % "internal": gauge(7), REFUSALS % "quota": counter(5)},
        {"route": "r", "problem": "internal"},
        "r: a bug of the gateway was met",
        "page",
    ),
    "TailraceStaleShare": Case(
        {ANSWERS % ("stale", "unreachable"): counter(10), ANSWERS % ("hit", "fresh"): counter(90)},
        {
            ANSWERS % ("stale", "revalidating"): counter(40),
            ANSWERS % ("stale", "max-stale"): counter(40),
            ANSWERS % ("stale", "timeout"): counter(1),
            ANSWERS % ("hit", "fresh"): counter(90),
        },
        R,
        "r serves 10% old answers in place of new ones",
    ),
    "TailraceDegradedShare": Case(
        {STOOD_IN % "tier": counter(4), STOOD_IN % "snapshot": counter(6), RESPONSES % 200: counter(100)},
        {
            STOOD_IN % "default": counter(4),  # and two steps before each
            DEGRADED % "tier": counter(4), DEGRADED % "snapshot": counter(4), DEGRADED % "default": counter(4),
            DEGRADED % "replica": counter(90),
            RESPONSES % 200: counter(100),
        },
        R,
        "r: for 10% of requests something stood in for what failed",
    ),
    "TailraceRefreshFailing": Case(
        {'tailrace_refresh_failures_total{route="r"}': counter(60)},
        {'tailrace_refresh_failures_total{route="r"}': counter(1)},
        R,
        "r: refreshes behind callers fail, so what it serves grows old",
    ),
    "TailraceQuotaRefusals": Case(
        {REFUSALS % "quota": counter(20), RESPONSES % 200: counter(80), RESPONSES % 429: counter(20)},
        {REFUSALS % "quota": counter(2), REFUSALS % "invalid": counter(50), RESPONSES % 200: counter(98)},
        R,
        "r refuses 20% of requests for a spent quota",
    ),
    "TailraceNoReadyReplica": Case(
        {f"tailrace_replica_ready{REPLICA % worker}": gauge(0) for worker in range(2)},
        {f"tailrace_replica_ready{REPLICA % worker}": gauge(worker) for worker in range(2)},
        {"backend": "b"},
        "no replica of b is ready",
        "page",
    ),
    "TailraceBreakerOpen": breaker(
        f"tailrace_breaker_state{REPLICA % 1}", OF_REPLICA,
        "replica http://one of b is not asked: it cannot be reached",
    ),
    "TailraceModelFailing": one(
        f"tailrace_replica_models_open{REPLICA % 1}", 2, 0, OF_REPLICA,
        "2 models of replica http://one are not asked: their answers fail",
    ),
    "TailraceSecondLevelOpen": breaker(
        'tailrace_second_store_state{store="redis"}', {"store": "redis"},
        "the second level at redis is not asked: it does not answer",
    ),
    "TailraceSecondWritesLost": Case(
        {SECOND % f"write_{word}": counter(each) for word, each in (("dropped", 4), ("failed", 6), ("written", 90))},
        {
            **{SECOND % f"write_{word}": counter(each) for word, each in (("failed", 2), ("written", 98))},
            **{SECOND % word: counter(900) for word in ("miss", "failed")},  # of what was looked for
        },
        R,
        "r: 10% of what is left in the second level is lost on the way",
    ),
    "TailraceTableStoreOpen": breaker(
        'tailrace_table_breaker_state{table="t"}', {"table": "t"},
        "the store of table t is not asked: it does not answer", "page",
    ),
    "TailraceTableRowsLost": Case(
        {ROWS % "fresh": counter(80), ROWS % "stale": counter(10), ROWS % "lost": counter(10)},
        {ROWS % "fresh": counter(80), ROWS % "absent": counter(20), ROWS % "stale": counter(1)},
        {"table": "t"},
        "20% of the rows of table t are old ones or defaults",
    ),
    "TailraceCoherenceLost": one(
        'tailrace_table_live{table="t"}', 0, 1, {"table": "t"}, "writes to table t are not heard of"
    ),
    "TailraceReloadFailing": one(
        "tailrace_reload_failing", 1, 0, {}, "the configuration in force is not the one that was last asked for"
    ),
    "TailraceConnectionsAtLimit": Case(
        {'tailrace_connections{worker="0"}': gauge(95), 'tailrace_connections_max{worker="0"}': gauge(100)},
        {
            'tailrace_connections{worker="0"}': gauge(50), 'tailrace_connections_max{worker="0"}': gauge(100),
            "tailrace_rpc_connections": gauge(50), "tailrace_rpc_connections_max": gauge(100),
        },
        {"worker": "0"},
        "callers hold 95% of all connections there may be",
        "page",
    ),
    "TailraceBytesAtLimit": Case(
        {"tailrace_buffered_refusals_total": counter(1)},
        {"tailrace_buffered_refusals_total": gauge(9)},
        {},
        "requests are refused because those in work hold all the memory there is for them",
        "page",
    ),
    "TailraceCertificateEnding": one(
        "tailrace_tls_certificate_ends_seconds", 86400 + 2400, 90 * 86400, {}, "the certificate ends in 1d 0h 0m 0s"
    ),
    "TailraceCertificateNotRenewed": one(
        "tailrace_tls_renewal_failing", 1, 0, {}, "new certificate files are there and cannot be used"
    ),
    "TailraceWorkerRestarts": Case(
        {"tailrace_worker_restarts_total": counter(1)},
        {"tailrace_worker_restarts_total": f"0x35 {gauge(2)}"},
        {},
        "workers have ended 15 times in 15 minutes",
        "page",
    ),
    "TailraceWorkerDown": one(
        'tailrace_worker_up{worker="1"}', 0, 1, {"worker": "1"}, "worker 1 does not answer its supervisor", "page"
    ),
    "TailraceDeadlyRequest": one(
        "tailrace_deadly_requests", 1, 0, {}, "1 requests are refused because workers have died of them", "page"
    ),
    "TailraceChaosEnabled": one(
        'tailrace_chaos_enabled{worker="0"}', 1, 0, {},
        "faults can be made on purpose here, by whoever reaches the admin port",
    ),
    "TailraceBrownout": one(
        'tailrace_brownout_level{backend="b",worker="0"}', 3, 1, {"backend": "b"},
        "b is at brownout level 3: answers are simpler or older, to be in time",
    ),
    "TailraceShedding": Case(
        {SHED % ("full", "low"): counter(60), SHED % ("late", "normal"): counter(60)},
        {SHED % ("full", "low"): counter(6), SHED % ("late", "normal"): gauge(900)},
        {"backend": "b", "model": "m"},
        "model m of b has no place for 2 requests a second",
        "page",
    ),
    "TailraceLoopLate": Case(
        {'tailrace_loop_late_seconds_total{worker="0"}': counter(15)},
        {'tailrace_loop_late_seconds_total{worker="0"}': counter(1.5)},
        {},
        "the event loop comes late 25% of the time: everyone waits for something that holds it up",
    ),
    "TailraceSnapshotOld": Case(
        {"tailrace_snapshot_age_seconds": gauge(600), "tailrace_snapshot_waiting": gauge(7)},
        {"tailrace_snapshot_age_seconds": gauge(600), "tailrace_snapshot_waiting": gauge(0)},
        {},
        "nothing was written to the snapshot for 10m 0s",
    ),
    "TailraceSnapshotFailing": Case(
        {'tailrace_snapshot_failures_total{kind="full"}': counter(1)},
        {'tailrace_snapshot_failures_total{kind="full"}': gauge(9)},
        {},
        "the disk of the snapshot fails: 10 times in ten minutes",
    ),
    "TailraceSnapshotForgotten": Case(
        {"tailrace_snapshot_forgotten_total": counter(100)},
        {"tailrace_snapshot_forgotten_total": gauge(9000)},
        {},
        "the snapshot does not keep up: 1k keys of ten minutes are not copied",
    ),
    "TailraceSnapshotRejected": Case(
        {REJECTED % "checksum": f"0x30 {gauge(1)}"},
        {REJECTED % "checksum": gauge(1)}
        | {REJECTED % reason: counter(60) for reason in ("fingerprint", "purged", "age")},
        {"reason": "checksum"},
        "records of the snapshot are not what was written: checksum",
    ),
    "TailraceSnapshotWordUnknown": Case(
        {
            WORD % ("clock", 1): f"1x20 {gauge(0)}",
            WORD % ("unread", 1): f"0x20 {gauge(1)}",
            WORD % ("held", 2): gauge(1),
        },
        {
            WORD % ("unreachable", 1): f"1x5 {gauge(0)}",
            WORD % ("unknown-model", 1): gauge(1),
            WORD % ("held", 2): gauge(1),
        },
        {"route": "r"},
        "nobody can tell whether the copies of r are of its models as they are",
    ),
    "TailraceSnapshotQuarantined": Case(
        {"tailrace_snapshot_quarantine_files": gauge(2)},  # from before the first scrape, as at a start
        {
            "tailrace_snapshot_quarantine_files": f"2x30 {gauge(0)}",  # pruned
            'tailrace_snapshot_quarantined_total{reason="checksum"}': gauge(1),
        },
        {},
        "2 damaged files of the snapshot lie in quarantine",
    ),
}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    own = ROOT / ".cache" / "promtool" / "promtool"
    path = shutil.which("promtool") or str(own)
    assert Path(path).exists(), "these tests need promtool: make .promtool"
    return subprocess.run([path, *arguments], capture_output=True, text=True, timeout=60.0, check=False)


def page_of(alert: str) -> str:
    """TailraceStaleShare -> stale-share."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", alert.removeprefix("Tailrace")).lower()


def expected(name: str, case: Case) -> dict[str, object]:
    told = {"summary": case.summary, "runbook": f"docs/runbook/{page_of(name)}.md"}
    return {"exp_labels": {**case.labels, "severity": case.severity}, "exp_annotations": told}


def examined(name: str, series: dict[str, str], found: list[dict[str, object]]) -> dict[str, object]:
    inputs = [{"series": each, "values": values} for each, values in series.items()]
    alert = {"eval_time": TIME, "alertname": name, "exp_alerts": found}
    return {"interval": "1m", "input_series": inputs, "alert_rule_test": [alert]}


def test_the_rules_are_rules() -> None:
    told = promtool("check", "rules", str(RULES))
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_alert_is_tried() -> None:
    assert list(CASES) == ALERTS


def test_each_fires_when_it_should_and_not_when_it_should_not(tmp_path: Path) -> None:
    tried = [examined(name, case.sick, [expected(name, case)]) for name, case in CASES.items()]
    tried += [examined(name, case.well, []) for name, case in CASES.items()]
    path = tmp_path / "tailrace.test.yml"
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tried}
    path.write_text(json.dumps(document))  # JSON is YAML
    told = promtool("test", "rules", str(path))
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_each_has_a_page_that_says_what_to_do(alert: str) -> None:
    text = (RUNBOOK / f"{page_of(alert)}.md").read_text()
    assert text.startswith(f"# {alert}\n")
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert headings == ["What it means", "What callers see", "What to look at", "What to do"]
    assert f"runbook: docs/runbook/{page_of(alert)}.md" in RULES.read_text()


def test_no_page_is_of_an_alert_that_is_gone() -> None:
    assert {path.stem for path in RUNBOOK.glob("*.md")} == {page_of(alert) for alert in ALERTS}


def test_every_metric_that_a_rule_or_a_page_names_is_told_by_a_gateway(
    gateway_factory: Callable[..., GatewayProcess], redis: RedisServer, own_pem: Pem, tmp_path: Path
) -> None:
    table = {"store": redis.url, "key": "t:{id}", "shape": [2], "ttl": "1m", "coherence": "tracking"}
    config = {
        "server": {"tls": {"certificate": str(own_pem.certificate), "key": str(own_pem.key)}, "rpc": "127.0.0.1:0"},
        "backends": {"b": {"http": ["http://127.0.0.1:9"]}},
        "snapshot": {"path": str(tmp_path)},
        "tables": {"t": table},
        "routes": {"r": {"tiers": [{"backend": "b", "model": "m"}], "cache": {"ttl": "1m", "second": redis.url}}},
    }
    gateway = gateway_factory(config, ("--workers", "2"))
    text = gateway.exposition()
    told = set(re.findall(r"(?m)^# TYPE (\w+) ", text))
    for outcome in ("write_dropped", "write_failed", "write_written"):
        assert f'tailrace_second_total{{outcome="{outcome}",route="r"}} 0.0' in text, "else it has no rate"
    for reason in ("checksum", "value", "clock"):
        assert f'tailrace_snapshot_rejected_total{{reason="{reason}"}} 0.0' in text
    for path in (RULES, *RUNBOOK.glob("*.md")):
        named = set(re.findall(r"\btailrace_\w+", path.read_text()))
        assert {each for each in named if each not in told} == set(), path.name
