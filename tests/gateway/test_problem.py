"""Problem documents: RFC 9457 members, Triton's error member, and header fields that belong to them."""

import inspect
import json
import math

import pytest
from tritonclient.http import _utils

from gateway import problem
from gateway.problem import Problem, Refused

EVERY = [
    problem.malformed("m", "json"),
    problem.invalid("i"),
    problem.unauthenticated(),
    problem.forbidden("Loading models is refused", "server.control"),
    problem.not_found("n"),
    problem.method_not_allowed("PUT", ("GET", "POST")),
    problem.too_large("t", 5),
    problem.unsupported_encoding("u"),
    problem.quota("q", 0.2),
    problem.unavailable("u", 2.5),
    problem.deadline_exceeded("d"),
    problem.not_cached(),
    problem.internal(),
]


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.slug)
def test_every_kind_has_the_members_of_both_worlds(one):
    document = json.loads(one.body())
    assert document["type"] == f"urn:tailrace:problem:{one.slug}"
    assert document["status"] == one.status
    assert document["title"]
    assert document["error"] == document["detail"] != ""
    assert dict(one.headers())["Content-Type"] == "application/problem+json"
    for name, value in one.headers():
        assert name.isascii()
        assert value.isprintable()


def test_slugs_differ():
    assert len({one.slug for one in EVERY}) == len(EVERY)


def test_headers_that_a_status_demands():
    assert dict(problem.quota("q", 0.2).headers())["Retry-After"] == "1"
    assert dict(problem.unavailable("u", 2.5).headers())["Retry-After"] == "3"
    assert dict(problem.method_not_allowed("PUT", ("GET", "POST")).headers())["Allow"] == "GET, POST"
    assert "WWW-Authenticate" in dict(problem.unauthenticated().headers())
    assert "gzip" in dict(problem.unsupported_encoding("u").headers())["Accept-Encoding"]


def test_forbidden_names_the_key_that_allows_it():
    assert "server.control" in json.loads(problem.forbidden("No.", "server.control").body())["error"]


def test_any_text_makes_a_body_and_members_cannot_be_overridden():
    odd = Problem("s", 400, "t", "\ud800\r\n" + "x" * 9999, extras={"status": 200, "why": "\udfff", "n": 1})
    document = json.loads(odd.body())
    assert document["status"] == 400
    assert len(document["detail"]) <= 1024
    assert document["n"] == 1


@pytest.mark.parametrize(("seconds", "whole"), [(0, 1), (-5, 1), (1.01, 2), (1e9, 86_400), (math.inf, 86_400)])
def test_retry_after_is_a_whole_number_of_seconds_and_the_document_says_the_same(seconds, whole):
    spent = problem.quota("q", seconds)
    assert dict(spent.headers())["Retry-After"] == str(whole)
    assert json.loads(spent.body())["retry_after"] == whole


def test_tritonclient_raises_the_error_member():
    class Response:
        status_code = 503

        def read(self):
            return problem.unavailable("No replica answers.").body()

    assert inspect.isfunction(_utils._get_error)
    assert _utils._get_error(Response()).message() == "No replica answers."


def test_refused_reads_as_its_detail():
    assert str(Refused(problem.invalid("because"))) == "because"
