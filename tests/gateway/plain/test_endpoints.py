"""An endpoint before a plain JSON predict server, through real sockets and on both lanes: what is kept, for whom, how
long, and what its answers say of themselves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from email.utils import formatdate
from time import monotonic

import pytest

from gateway.notes import Notebook, Notes
from gateway.suspects import Suspect
from tests.gateway.plain.conftest import Front, Open, Predictor, Told, until

CACHED = """
[endpoints.score]
path = "/predict"
cache = { ttl = "1h", max_stale = "1h" }
"""
SHORT = CACHED.replace('ttl = "1h"', 'ttl = "20ms"')
KEYS = "".join(
    f'[callers.{name}]\nkey_sha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\ntenant = "{tenant}"\n'
    for name, tenant in (("ann", "red"), ("ben", "red"), ("cid", "blue"))
)


async def twice(front: Front, **fields: str) -> tuple[Told, Told]:
    return await front.predict(1, 2, **fields), await front.predict(1, 2, **fields)


def ttl_of(told: Told) -> int:
    found = re.search(r"ttl=(-?\d+)", told.headers["Cache-Status"])
    assert found is not None
    return int(found[1])


async def test_the_second_of_two_equal_posts_is_a_hit_and_says_so(predictor: Predictor, open_front: Open) -> None:
    predictor.fields = {"X-Model": "m7", "ETag": '"1"'}
    front = await open_front(CACHED)
    miss, hit = await twice(front)
    assert miss.document == hit.document == {"sum": 3}
    assert miss.headers["Tailrace-Provenance"] == "cache=miss, reason=absent"
    assert re.fullmatch(r"tailrace; fwd=miss; stored; detail=absent", miss.headers["Cache-Status"])
    assert "Age" not in miss.headers
    assert re.fullmatch(r"cache=hit, reason=fresh, age=\d+", hit.headers["Tailrace-Provenance"])
    assert hit.headers["Cache-Status"].startswith("tailrace; hit; ttl=")
    assert int(hit.headers["Age"]) + ttl_of(hit) in (3599, 3600)
    for told in (miss, hit):
        assert told.headers["Content-Type"] == "application/json"
        assert (told.headers["X-Model"], told.headers["ETag"]) == ("m7", '"1"')
        assert told.headers["Server"] == "tailrace"
    again = await front.predict(1, 2)  # by its bytes, on the edge lane in the read callback
    assert (again.cache, again.body) == ("hit", miss.body)
    assert again.headers["Server-Timing"] == "cache;desc=hit", "known by its bytes"
    assert set(again.headers) == set(hit.headers)
    assert len(predictor.posts) == 1
    assert front.gateway.standing.endpoints["score"].cache is not None
    assert front.gateway.standing.endpoints["score"].cache.wires == 1


async def test_the_server_gets_the_post_as_it_came(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    await front.predict(5, path="/predict?v=1&w=%20", X_One="1", Connection="X-Two", X_Two="2")
    ((query, fields, body),) = predictor.posts
    assert (query, json.loads(body)) == ("v=1&w= ", {"inputs": [5]})
    assert fields["X-One"] == "1"
    assert "X-Two" not in fields
    assert fields["Via"] == "1.1 tailrace"
    assert fields["X-Forwarded-For"] == "127.0.0.1"
    assert fields["Content-Length"] == str(len(body))


OTHERS = [
    {"Accept": "text/plain"},
    {"Accept-Encoding": "gzip"},
    {"Content-Encoding": "x-none"},
    {"Content-Type": "text/json"},
    {"Host": "elsewhere.example"},
    {"X-HTTP-Method-Override": "DELETE"},
    {"X-Forwarded-Prefix": "/elsewhere"},
    {"X-Named": "in vary"},
]


@pytest.mark.parametrize("other", OTHERS, ids=[next(iter(each)) for each in OTHERS])
async def test_what_decides_an_answer_keeps_posts_apart(
    predictor: Predictor, open_front: Open, other: dict[str, str]
) -> None:
    front = await open_front(CACHED + 'vary = ["x-named"]\n')
    told = [await front.predict(1, **fields) for fields in ({}, other, {}, other)]
    assert [each.cache for each in told] == ["miss", "miss", "hit", "hit"]
    assert len(predictor.posts) == 2


async def test_who_is_believed_about_its_host_has_answers_of_that_host(
    predictor: Predictor, open_front: Open
) -> None:
    hosts = ("a.example", "b.example", "a.example", "b.example", "b.example")
    predictor.echoes = "X-Forwarded-Host"
    believing = await open_front(CACHED, TAILRACE_SERVER__TRUSTED_PROXIES='["127.0.0.1"]')
    told = [await believing.predict(1, X_Forwarded_Host=host) for host in hosts]
    assert [each.body.decode() for each in told] == list(hosts)
    assert [each.cache for each in told] == ["miss", "miss", "hit", "hit", "hit"]
    careful = await open_front(CACHED)
    told = [await careful.predict(1, X_Forwarded_Host=host) for host in hosts]
    assert {each.body.decode() for each in told} == {f"127.0.0.1:{careful.port}"}
    assert [each.cache for each in told] == ["miss", "hit", "hit", "hit", "hit"]


async def test_what_decides_nothing_does_not(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    told = [await front.predict(1, User_Agent=f"agent {index}", Traceparent=f"{index}") for index in range(9)]
    assert [each.cache for each in told] == ["miss", *["hit"] * 8]
    assert len(predictor.posts) == 1


async def test_bodies_queries_and_paths_are_other_questions(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    paths = ["/predict", "/predict?a=1", "/predict?a=%31", "/predict?a=1&"]
    assert [(await front.predict(1, path=path)).cache for path in paths] == ["miss"] * 4
    assert [(await front.predict(1, path=path)).cache for path in paths] == ["hit"] * 4
    assert [target for _, target in predictor.asked] == ["/predict", "/predict?a=1", "/predict?a=%31", "/predict?a=1&"]
    assert (await front.predict(2)).document == {"sum": 2}
    assert (await front.ask("POST", "/predict", b"")).cache == "miss"
    assert (await front.ask("POST", "/predict", b"")).cache == "hit"
    assert (await front.predict(1, path="/Predict")).status == 404
    assert (await front.predict(1, path="/predict/")).cache == "bypass"


async def test_another_spelling_of_the_path_is_the_same_endpoint(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    assert (await front.predict(1)).cache == "miss"
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    body = b'{"inputs": [1]}'
    writer.write(b"POST /%%70redict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert b" 200 " in head
    assert b"cache=miss" in head  # its Host is another
    assert predictor.asked == [("POST", "/predict")] * 2


async def test_all_who_ask_the_same_at_once_wait_for_one_call(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    predictor.gate.clear()
    asked = [asyncio.create_task(front.predict(1, 2)) for _ in range(50)]
    await until(lambda: front.gateway.standing.endpoints["score"].flights.waiters == 50)
    predictor.gate.set()
    told = await asyncio.gather(*asked)
    assert len(predictor.posts) == 1
    assert {each.body for each in told} == {b'{"sum": 3}'}
    assert sum("collapsed" in each.headers["Cache-Status"] for each in told) == 49


async def test_an_old_answer_when_the_server_is_gone_says_so(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(SHORT)
    assert (await front.predict(1)).cache == "miss"
    await predictor.stop()
    await asyncio.sleep(0.03)
    old = await front.predict(1)
    assert (old.status, old.document) == (200, {"sum": 1})
    provenance = old.headers["Tailrace-Provenance"]
    assert re.fullmatch(r"cache=stale, reason=(unreachable|dropped), age=\d+, steps=\(stale\), degraded", provenance)
    assert ttl_of(old) < 0
    new = await front.predict(2)
    assert new.status == 503
    assert new.document["detail"].startswith("Endpoint score has no answer (unreachable: ")  # type: ignore[attr-defined]
    assert float(new.headers["Retry-After"]) >= 1
    strict = await front.predict(1, Cache_Control="max-stale=0")
    assert strict.status == 503
    await predictor.start(predictor.port)
    await until(lambda: not front.gateway.lacking())
    assert (await front.predict(1)).cache == "miss"


async def test_a_servers_own_error_is_told_in_its_words_and_not_kept(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(SHORT)
    predictor.status, predictor.reply = 500, b"no luck"
    failed = await front.predict(1)
    assert (failed.status, failed.body) == (500, b"no luck")
    assert failed.headers["Tailrace-Provenance"] == "cache=miss, reason=raised, degraded"
    predictor.status, predictor.reply = 200, None
    assert (await front.predict(1)).document == {"sum": 1}
    await asyncio.sleep(0.03)
    for status, reason in ((500, "raised"), (503, "overloaded"), (429, "overloaded"), (502, "broken")):
        predictor.status = status
        old = await front.predict(1)
        assert (old.status, old.cache, old.document) == (200, "stale", {"sum": 1})
        assert f"reason={reason}" in old.headers["Tailrace-Provenance"]
    predictor.status = 422
    assert (await front.predict(1)).status == 422
    assert (await front.predict(1)).status == 422, "the caller's own fault is no reason for an old answer"
    async with front.client.get(f"{front.admin}/metrics") as got:
        told = [line for line in (await got.read()).decode().splitlines() if line.startswith("tailrace_stood_in_total")]
    assert told == ['tailrace_stood_in_total{route="score",step="stale"} 4.0'], "and errors are no answers"


async def test_tenants_do_not_share_and_callers_of_one_do(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED + KEYS)
    told = [await front.predict(1, X_API_Key=key) for key in ("ann", "ben", "cid", "ann", "cid")]
    assert [each.cache for each in told] == ["miss", "hit", "miss", "hit", "hit"]
    assert (await front.predict(1)).cache == "miss"
    assert (await front.predict(1, X_API_Key="eve")).status == 401
    assert not any("X-API-Key" in fields for _, fields, _ in predictor.posts)
    shared = await open_front(CACHED.replace('max_stale = "1h"', "shared = true") + KEYS)
    assert [(await shared.predict(1, X_API_Key=key)).cache for key in ("ann", "cid")] == ["miss", "hit"]


async def test_what_an_answer_varies_by_keeps_posts_apart(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    predictor.echoes, predictor.fields = "X-Lang", {"Vary": "x-lang, Accept", "Content-Type": "text/plain"}
    told = [await front.predict(1, X_Lang=lang) for lang in ("de", "en", "de", "en", "de")]
    assert [each.body for each in told] == [b"de", b"en", b"de", b"en", b"de"]
    assert [each.cache for each in told] == ["miss", "miss", "hit", "hit", "hit"]
    assert (await front.predict(1)).body == b""
    assert len(predictor.posts) == 3


@pytest.mark.parametrize("first", ["de", ""])
async def test_who_waited_for_an_answer_that_varies_gets_no_others(
    predictor: Predictor, open_front: Open, first: str
) -> None:
    front = await open_front(CACHED)
    predictor.echoes, predictor.fields = "X-Lang", {"Vary": "X-Lang"}
    predictor.gate.clear()
    langs = [first, *("de", "en", "") * 4]
    asked = [asyncio.create_task(front.predict(1, **({"X_Lang": lang} if lang else {}))) for lang in langs]
    await until(lambda: front.gateway.standing.endpoints["score"].flights.waiters == 13)
    predictor.gate.set()
    assert [each.body.decode() for each in await asyncio.gather(*asked)] == langs


async def test_an_answer_that_varies_by_too_much_is_not_kept(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    predictor.fields = {"Vary": ", ".join(f"X-{number}" for number in range(17))}
    assert [each.cache for each in await twice(front)] == ["miss", "miss"]
    predictor.fields = {"Vary": ", ".join(f"X-{number}" for number in range(16))}
    assert [each.cache for each in await twice(front)] == ["miss", "hit"]
    predictor.fields = {"Vary": "X-16"}
    assert [(await front.predict(5)).cache for _ in range(2)] == ["miss", "miss"]


@pytest.mark.parametrize("vary", ["*", "Accept, *", "X-Forwarded-For", "via"])
async def test_what_varies_by_all_or_by_who_asks_is_not_kept(
    predictor: Predictor, open_front: Open, vary: str
) -> None:
    predictor.fields = {"Vary": vary}
    assert [each.cache for each in await twice(await open_front(CACHED))] == ["miss", "miss"]
    assert len(predictor.posts) == 2


FOR_NOBODY_ELSE = ["no-store", "private", "no-cache", "max-age=0", "s-maxage=0, max-age=60", 'private="x"', "max-age=x"]


@pytest.mark.parametrize("said", FOR_NOBODY_ELSE)
async def test_what_the_server_forbids_is_not_kept(predictor: Predictor, open_front: Open, said: str) -> None:
    predictor.fields = {"Cache-Control": said}
    assert [each.cache for each in await twice(await open_front(CACHED))] == ["miss", "miss"]
    assert len(predictor.posts) == 2


async def test_the_server_may_shorten_and_not_lengthen(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    for number, (fields, ttl) in enumerate(
        (
            ({"Cache-Control": "max-age=60"}, 60),
            ({"Cache-Control": "max-age=60", "Age": "20"}, 60),
            ({"Cache-Control": "public, max-age=864000"}, 3600),
            ({"Expires": formatdate(4e9, usegmt=True)}, 3600),
        )
    ):
        predictor.fields = fields
        await front.predict(number)
        hit = await front.predict(number)
        age = int(hit.headers["Age"])
        assert age >= int(fields.get("Age", "0"))
        assert ttl_of(hit) + age in (ttl - 1, ttl)
    predictor.fields = {"Expires": "0"}
    assert [each.cache for each in await twice(front)] == ["miss", "miss"]


async def test_what_must_be_asked_about_again_is_never_stale(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(SHORT)
    predictor.fields = {"Cache-Control": "must-revalidate"}
    assert (await front.predict(1)).cache == "miss"
    await predictor.stop()
    await asyncio.sleep(0.03)
    assert (await front.predict(1)).status == 503


async def test_a_cookie_is_its_receivers_alone(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    predictor.cookies = True
    predictor.gate.clear()
    asked = [asyncio.create_task(front.predict(1)) for _ in range(5)]
    await until(lambda: front.gateway.standing.endpoints["score"].flights.waiters == 5)
    predictor.gate.set()
    told = await asyncio.gather(*asked)
    assert len({each.headers["Set-Cookie"] for each in told}) == 5
    assert (await front.predict(1)).cache == "miss"
    predictor.status = 500
    assert len({each.headers["Set-Cookie"] for each in await twice(front)}) == 2


@pytest.mark.parametrize("field", ["Authorization", "Cookie", "X-API-Key"])
async def test_credentials_that_go_on_to_the_server_are_never_cached(
    predictor: Predictor, open_front: Open, field: str
) -> None:
    front = await open_front(CACHED)
    assert (await front.predict(1)).cache == "miss"
    for told in await twice(front, **{field: "mine"}):
        told_again = await front.predict(1, **{field: "mine"})
        assert told_again.headers["Tailrace-Provenance"] == "cache=bypass, reason=credentials"
        assert told.cache == "bypass"
    assert predictor.posts[-1][1][field] == "mine"
    assert (await front.predict(1)).cache == "hit"


async def test_a_requests_cache_control_holds_as_on_routes(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    refused = await front.predict(1, Cache_Control="only-if-cached")
    assert refused.status == 504
    assert predictor.posts == []
    assert (await front.predict(1, Cache_Control="no-store")).cache == "miss"
    assert (await front.predict(1)).cache == "miss", "it left nothing"
    assert (await front.predict(1, Cache_Control="only-if-cached")).cache == "hit"
    assert (await front.predict(1, Cache_Control="max-age=60")).cache == "hit"
    fresh = await front.predict(1, Cache_Control="no-cache")
    assert fresh.headers["Tailrace-Provenance"] == "cache=miss, reason=no-cache"
    assert len(predictor.posts) == 3
    short = await open_front(SHORT)
    await short.predict(7)
    await asyncio.sleep(0.03)
    assert (await short.predict(7, Cache_Control="max-stale")).cache == "stale"
    assert (await short.predict(7, Cache_Control="max-stale=60")).headers["Tailrace-Provenance"].startswith(
        "cache=stale, reason=max-stale"
    )


async def test_an_old_answer_is_served_while_a_new_one_is_fetched(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(SHORT.replace('max_stale = "1h"', 'max_stale = "1h", refresh = "1h"'))
    await front.predict(1)
    await asyncio.sleep(0.03)
    predictor.gate.clear()
    old = await front.predict(1)
    assert old.headers["Tailrace-Provenance"] == "cache=stale, reason=revalidating, age=0"
    await until(lambda: len(predictor.posts) == 2)
    predictor.gate.set()
    await until(lambda: front.gateway.standing.endpoints["score"].refreshes == 0)


async def test_only_its_posts_are_an_endpoints(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED.replace("/predict", "/echo"))
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "QUERY"):
        for _ in range(2):
            told = await front.ask(method, "/echo")
            assert (told.status, told.cache, told.headers["X-Method"]) == (200, "bypass", method)
    assert [(await front.ask("POST", "/echo", b"x")).cache for _ in range(2)] == ["miss", "hit"]


async def test_a_quota_is_charged_for_what_puts_work_on_the_server(predictor: Predictor, open_front: Open) -> None:
    quota = 'quota = { rate = 2, per = "1h" }\ncaller_quota = { rate = 9, per = "1h" }\n'
    front = await open_front(CACHED + quota)
    assert [(await front.predict(1)).status for _ in range(9)] == [200] * 9
    second = await front.predict(2)
    assert second.headers["RateLimit"].startswith('"endpoint:score";r=0')
    spent = await front.predict(3)
    assert (spent.status, spent.document["error"]) == (429, spent.document["detail"])
    assert "Retry-After" in spent.headers
    assert (await front.predict(1)).cache == "hit"
    assert len(predictor.posts) == 2


async def test_bodies_are_bounded_by_the_key_that_is_named(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED + 'body_bytes_max = "1KiB"\n')
    assert (await front.ask("POST", "/predict", b"x" * 1024)).status == 200
    refused = await front.ask("POST", "/predict", b"x" * 1025)
    assert (refused.status, refused.document["bytes_max"]) == (413, 1024)
    assert "endpoints.score.body_bytes_max" in str(refused.document["detail"])
    assert len(predictor.posts) == 1


async def test_a_purge_and_the_metrics_name_it_as_a_route(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    await front.predict(1)
    await front.predict(1)
    async with front.client.get(f"{front.admin}/status") as got:
        status = json.loads(await got.read())["routes"]["score"]
        assert (status["tiers"], status["cache"]["entries"]) == (["plain/predict"], 1)
    async with front.client.post(f"{front.admin}/purge?route=score") as got:
        assert json.loads(await got.read()) == {"purged": {"score": 1}}
    assert (await front.predict(1)).cache == "miss"
    async with front.client.get(f"{front.admin}/metrics") as got:
        text = (await got.read()).decode()
    for line in (
        'tailrace_answers_total{cache="hit",reason="fresh",route="score"} 1.0',
        'tailrace_answers_total{cache="miss",reason="absent",route="score"} 2.0',
        'tailrace_fills_total{route="score"} 2.0',
        'tailrace_responses_total{route="score",status="200"} 3.0',
        'tailrace_cache_entries{route="score"} 1.0',
    ):
        assert line in text, text
    async with front.client.post(f"{front.admin}/purge?all") as got:
        assert json.loads(await got.read()) == {"purged": {"score": 1}}


async def test_another_replica_is_asked_when_one_fails(predictor: Predictor, open_front: Open) -> None:
    failing = Predictor()
    await failing.start()
    failing.status = 500
    try:
        front = await open_front(CACHED, [failing.url, predictor.url])
        told = [await front.predict(number) for number in range(12)]
        assert {each.status for each in told} == {200}
        assert "cache=miss, reason=absent, steps=(replica)" in {each.headers["Tailrace-Provenance"] for each in told}
        alone = await open_front(CACHED + "degrade = []\n", [failing.url, predictor.url])
        assert {(await alone.predict(number)).status for number in range(12)} == {200, 500}
    finally:
        await failing.stop()


async def test_without_a_cache_it_is_a_policy_alone(predictor: Predictor, open_front: Open) -> None:
    front = await open_front('[endpoints.score]\npath = "/predict"\nbackend = "plain"\n')
    for told in await twice(front):
        assert (told.document, told.headers["Tailrace-Provenance"]) == ({"sum": 3}, "cache=bypass, reason=off")
    assert len(predictor.posts) == 2


async def ready(front: Front) -> tuple[int, str]:
    told = await front.ask("GET", "/v2/health/ready")
    return told.status, told.body.decode()


async def test_a_gateway_that_was_ready_stays_so_without_its_servers(predictor: Predictor, open_front: Open) -> None:
    """It has answers to give, and a balancer would keep who asks for them away; also once it has been told of another
    server that is away."""
    front = await open_front(CACHED)
    first = await front.predict(1)
    await predictor.stop()
    await until(lambda: bool(front.gateway.lacking()))
    assert (await ready(front))[0] == 200
    assert (await front.predict(1)).document == first.document
    front.write(CACHED + CACHED.replace("score", "other").replace("/predict", "/other"))
    assert (await front.gateway.reloads.reload()).faults == ()
    assert (await ready(front))[0] == 200


async def test_where_others_can_answer_instead_it_is_ready_with_its_servers_alone(
    predictor: Predictor, open_front: Open
) -> None:
    front = await open_front(CACHED, TAILRACE_SERVER__READY="backends")
    assert (await ready(front))[0] == 200
    await predictor.stop()
    await until(lambda: bool(front.gateway.lacking()))
    status, said = await ready(front)
    assert status == 503
    assert "endpoint score has no ready replica" in said


async def test_a_gateway_that_starts_without_its_servers_is_ready_when_they_are(
    predictor: Predictor, open_front: Open
) -> None:
    await predictor.stop()
    front = await open_front(CACHED)
    status, said = await ready(front)
    assert (status, "endpoint score has no ready replica" in said) == (503, True)
    await predictor.start(predictor.port)
    await until(lambda: front.gateway.readiness().ready)


async def test_a_reload_keeps_answers_that_are_still_true(predictor: Predictor, open_front: Open) -> None:
    front = await open_front(CACHED)
    predictor.echoes, predictor.fields = "X-Lang", {"Vary": "X-Lang"}
    for lang in ("de", "en"):
        assert (await front.predict(1, X_Lang=lang)).cache == "miss"
    assert await front.reload(CACHED + 'quota = { rate = 1, per = "1h" }\n') == 200
    for lang in ("de", "en"):
        told = await front.predict(1, X_Lang=lang)
        assert (told.cache, told.body.decode()) == ("hit", lang)
    assert [(await front.predict(number)).status for number in (7, 8)] == [200, 429]
    assert await front.reload(CACHED.replace("1h", "2h")) == 200
    assert (await front.predict(1, X_Lang="de")).cache == "miss", "another time to live is another cache"
    moved = CACHED.replace("/predict", "/echo")
    assert await front.reload(moved) == 200
    assert (await front.predict(1, X_Lang="de")).cache == "bypass"
    assert (await front.ask("POST", "/echo", b"x")).cache == "miss"
    assert await front.reload(moved + "nonsense = 1\n") == 422
    assert (await front.ask("POST", "/echo", b"x")).cache == "hit"
    assert await front.reload("") == 200
    assert (await front.ask("POST", "/echo", b"x")).cache == "bypass"
    assert front.gateway.standing.endpoints == {}


async def test_a_post_is_noted_while_it_is_in_work_and_refused_when_condemned(
    predictor: Predictor, open_front: Open
) -> None:
    notebook = Notebook(1)
    front = await open_front(CACHED)
    front.gateway.note(Notes(notebook.file, 0))
    predictor.gate.clear()
    asked = asyncio.create_task(front.predict(1, 2))
    await until(lambda: len(predictor.posts) == 1)
    (digest,) = notebook.taken(0)
    predictor.gate.set()
    assert (await asked).status == 200
    notebook.publish([Suspect(digest, monotonic() + 600.0)])
    assert (await front.predict(1, 2)).status == 422  # answered once, but not by its bytes yet
    assert (await front.predict(1, 3)).status == 200
    assert len(predictor.posts) == 2
    notebook.close()
