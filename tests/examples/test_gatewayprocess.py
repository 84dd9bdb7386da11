"""What the gateway fixture reads and writes: TOML, the Prometheus text format, a start that fails."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.gatewayprocess import GatewayFailed, GatewayProcess, samples, toml

SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_toml_reads_back_as_it_was(document):
    assert tomllib.loads(toml(document)) == document


def test_samples_are_read_with_sorted_labels():
    text = '# HELP a b\n# TYPE a counter\na_total{y="2",x="1 } \\"q"} 3.0\nplain 4\nbad line here\nd{le="+Inf"} 5e3\n'
    assert samples(text) == {'a_total{x="1 } \\"q",y="2"}': 3.0, "plain": 4.0, 'd{le="+Inf"}': 5000.0}


def test_a_gateway_that_cannot_start_shows_why(gateway_factory):
    with pytest.raises(GatewayFailed, match="nonsense"):
        gateway_factory({"nonsense": 1})


def test_a_gateway_starts_answers_and_stops(gateway_factory, triton):
    gateway = gateway_factory(None, ["--upstream", triton.http_url])
    assert gateway.http_url.startswith("http://127.0.0.1:")
    assert gateway.metrics()
    with pytest.raises(KeyError, match="no_such_metric"):
        gateway.metric("no_such_metric")
    assert gateway.metric("tailrace_responses_total", route="none") == 0
    process = gateway.process
    gateway.stop()
    assert not process.running
    assert process.returncode == 0, gateway.log()


def test_a_gateway_not_started_says_so():
    with pytest.raises(GatewayFailed, match="not started"):
        _ = GatewayProcess(None).process
