"""Request targets: what each path asks for, which switch it needs, and what has two meanings."""

import pytest

from gateway.doors.path import target_of
from gateway.problem import Refused


@pytest.mark.parametrize(
    ("raw", "kind", "model", "version", "rest"),
    [
        ("/v2", "other", "", "", ""),
        ("/", "other", "", "", ""),
        ("/metrics", "other", "", "", ""),
        ("/v2/health/live", "live", "", "", ""),
        ("/v2/health/live?verbose=1", "live", "", "", ""),
        ("/v2/health/ready", "ready", "", "", ""),
        ("/v2/health/readyz", "other", "", "", ""),
        ("/v2/models/m", "metadata", "m", "", ""),
        ("/v2/models/m/versions/3", "metadata", "m", "3", ""),
        ("/v2/models/m/infer", "infer", "m", "", "infer"),
        ("/v2/models/m/infer?a=b/c", "infer", "m", "", "infer"),
        ("/v2/models/m/versions/3/infer", "infer", "m", "3", "infer"),
        ("/v2/models/m/ready", "model-ready", "m", "", "ready"),
        ("/v2/models/m/versions/3/ready", "model-ready", "m", "3", "ready"),
        ("/v2/models/m/stats", "stats", "m", "", "stats"),
        ("/v2/models/m/versions/3/stats", "stats", "m", "3", "stats"),
        ("/v2/models/stats", "other", "", "", ""),
        ("/v2/models/m/config", "model-other", "m", "", "config"),
        ("/v2/models/m/generate_stream", "model-other", "m", "", "generate_stream"),
        ("/v2/models/m/INFER", "model-other", "m", "", "INFER"),
        ("/v2/models/m/infer/x", "model-other", "m", "", "infer/x"),
        ("/v2/models/d%C3%A9j%C3%A0/infer", "infer", "déjà", "", "infer"),
        ("/v2/models/a%20b", "metadata", "a b", "", ""),
        ("/v2/models/%6D/%69nfer", "infer", "m", "", "infer"),
        ("/v2/models/m%3Fx", "metadata", "m?x", "", ""),
        ("/v2/models/a..b", "metadata", "a..b", "", ""),
        ("/v2/models/.hidden", "metadata", ".hidden", "", ""),
        ("/v2/models/...", "metadata", "...", "", ""),
        ("/v2/models/m/versions", "model-other", "m", "", "versions"),
        ("/v2/repository/index", "other", "", "", ""),
        ("/v1/predict/m", "predict", "m", "", ""),
        ("/v1/predict/a%20b?q=1", "predict", "a b", "", ""),
        ("/v1/predict/m/versions/3", "predict", "m", "3", ""),
        ("/v1/predict", "other", "", "", ""),
        ("/v1/predict/m/infer", "other", "", "", ""),
        ("/V1/predict/m", "other", "", "", ""),
    ],
)
def test_every_path_has_one_meaning(raw, kind, model, version, rest):
    target = target_of("POST", raw)
    assert (target.kind, target.model, target.version, target.rest) == (kind, model, version, rest)
    assert target.raw == raw
    assert target.changes is None


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "*",
        "v2",
        "example.org:80",
        "http://example.org/v2",
        "//",
        "//example.org/v2",
        "/v2//models/m",
        "/v2/models/m//infer",
        "/v2/models/./m",
        "/v2/models/../repository/index",
        "/v2/models/m/..",
        "/v2/models/m/.",
        "/v2/models/%2e%2e/repository",
        "/v2/models/%2E./repository",
        "/v2/models/m%2Finfer",
        "/v2/models/m%2finfer",
        "/v2/models/m%5cinfer",
        "/v2/models/m\\infer",
        "/v2/models/m%00",
        "/v2/models/m%0d%0aX",
        "/v2/models/m%7f",
        "/v2/models/m%252Finfer",
        "/v2/models/%252e%252e/x",
        "/v2/models/m infer",
        "/v2/models/m\tinfer",
    ],
)
def test_a_target_with_two_meanings_is_refused(raw):
    with pytest.raises(Refused) as refusal:
        target_of("GET", raw)
    problem = refusal.value.problem
    assert (problem.status, problem.extras["reason"]) == (400, "target")


@pytest.mark.parametrize("raw", ["/v2/models/%ff", "/v2/models/%c0%af", "/%ed%a0%80"])
def test_percent_encoding_that_is_no_text_is_refused(raw):
    with pytest.raises(Refused) as refusal:
        target_of("GET", raw)
    assert (refusal.value.problem.status, refusal.value.problem.extras["reason"]) == (400, "utf8")


@pytest.mark.parametrize(
    ("method", "raw", "switch"),
    [
        ("POST", "/v2/repository/models/m/load", "repository"),
        ("POST", "/v2/repository/models/m/unload", "repository"),
        ("POST", "/v2/repository/other/models/m/load", "repository"),
        ("GET", "/v2/repository/models/m/load", "repository"),
        ("POST", "/V2/Repository/models/m/LOAD", "repository"),
        ("POST", "/v2/repository/models/m/lo%61d", "repository"),
        ("POST", "/v2/repository/models/m/load/", "repository"),
        ("POST", "/v2/repository/models/m/load?x=1", "repository"),
        ("POST", "/v2/repository/index", None),
        ("POST", "/v2/logging", "logging"),
        ("PUT", "/v2/logging/", "logging"),
        ("GET", "/v2/logging", None),
        ("POST", "/v2/trace/setting", "trace"),
        ("POST", "/v2/models/m/trace/setting", "trace"),
        ("POST", "/v2/models/m/versions/1/trace/setting", "trace"),
        ("GET", "/v2/trace/setting", None),
        ("HEAD", "/v2/models/m/trace/setting", None),
        ("POST", "/v2/systemsharedmemory/region/r/register", "shared_memory"),
        ("POST", "/v2/systemsharedmemory/region/r/unregister", "shared_memory"),
        ("POST", "/v2/systemsharedmemory/unregister", "shared_memory"),
        ("POST", "/v2/cudasharedmemory/region/r/register", "shared_memory"),
        ("GET", "/v2/systemsharedmemory/unregister", "shared_memory"),
        ("GET", "/v2/systemsharedmemory/status", None),
        ("GET", "/v2/systemsharedmemory/region/register/status", None),
        ("POST", "/v2/models/m/infer", None),
        ("POST", "/v2/models/load", None),
        ("POST", "/v2/models/m/generate", None),
    ],
)
def test_what_a_path_changes(method, raw, switch):
    assert target_of(method, raw).changes == switch


@pytest.mark.parametrize(
    ("raw", "model"),
    [
        ("/v2/repository/models/m/load", "m"),
        ("/v2/repository/models/d%C3%A9j%C3%A0/unload", "déjà"),
        ("/v2/repository/index", ""),
        ("/v2/logging", ""),
    ],
)
def test_the_model_that_a_load_names(raw, model):
    assert target_of("POST", raw).loads == model


@pytest.mark.parametrize(
    ("raw", "model", "version", "asked"),
    [
        ("/v2/models/r", "m", "", "/v2/models/m"),
        ("/v2/models/r/config", "m", "", "/v2/models/m/config"),
        ("/v2/models/r/config?a=1&b=%20", "m", "2", "/v2/models/m/versions/2/config?a=1&b=%20"),
        ("/v2/models/r/versions/1/stats", "m", "1", "/v2/models/m/versions/1/stats"),
        ("/v2/models/r/infer%3F", "m", "", "/v2/models/m/infer%3F"),
        ("/v2/models/r/infer%23x", "m", "", "/v2/models/m/infer%23x"),
        ("/v2/models/r/trace/setting", "m", "", "/v2/models/m/trace/setting"),
        ("/v2/models/r/generate_stream", "déjà vu", "", "/v2/models/d%C3%A9j%C3%A0%20vu/generate_stream"),
    ],
)
def test_a_target_is_asked_of_another_model(raw, model, version, asked):
    assert target_of("GET", raw).of_model(model, version) == asked
