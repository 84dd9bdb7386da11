"""The demo: a real Triton with two tiers of one task, the gateway before it, and what that gains.

Rule of this file: it talks to the gateway as any client does (tritonclient over HTTP, and plain HTTP
where headers are shown), every figure is measured in this run on held-out digits
(``digits/measurement.py``), and whatever it started is stopped, however it ends.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import tritonclient.http as triton_http
from rich.console import Console
from rich.live import Live
from rich.text import Text

from examples.console import INTERRUPTED, DemoFailed, exit_code, plain_console, quote, say, step
from examples.digits.measurement import LARGE, SMALL, WANTED, Images, measure, table
from examples.digits.repository import Digits, TrainingFailed, prepare
from examples.gatewayprocess import ConfigValue, GatewayFailed, GatewayProcess
from examples.ranking.act import act
from examples.redisserver import RedisFailed, RedisMissing, find_program
from examples.tritonserver import (
    TritonFailed,
    TritonMissing,
    TritonOptions,
    TritonServer,
    find_environment,
)

MARGIN: Final = 0.6
"""The fast tier's answer is taken if its best class leads the second by this much probability."""
UNSEEN: Final = 20
"""Held-out digits kept back until Triton is down, so that the gateway cannot know them."""
STALE_TTL_SECONDS: Final = 3
REPEATED: Final = 10
RECOVERY_SECONDS_MAX: Final = 30.0
SHOWN_HEADERS: Final = ("Cache-Status", "Age", "Tailrace-Provenance", "Retry-After", "Content-Type")

Answer = tuple[int, Mapping[str, str], bytes]
"""Status, headers (names in Title-Case), body."""

FRESH_WORDS: Final = "the same digit on route digits (fresh for 10 minutes), now in JSON: still a fresh hit"
STALE_WORDS: Final = "the same digit on route digits_brief: old, and labelled so"
NEW_WORDS: Final = "a digit never seen before: there is no answer to give, and a clear 503 says so"


@dataclass(frozen=True)
class Asked:
    """What the demo was asked to do, and when."""

    keep: bool
    redis: bool
    digits_max: int | None
    began: float


def main(keep: bool, redis: bool = False, digits_max: int | None = None) -> int:
    """Run the demo and return an exit code.

    ``keep`` leaves all that runs running until Ctrl-C; ``redis``: the second act's features are in Redis, not in a
    file; ``digits_max`` measures on fewer digits.
    """
    console = plain_console()
    asked = Asked(keep, redis, digits_max, time.monotonic())
    return exit_code(
        console,
        "tailrace demo",
        lambda stack: _run(stack, console, asked),
        (TritonMissing, TritonFailed, GatewayFailed, TrainingFailed, RedisMissing, RedisFailed, DemoFailed),
        interrupted=0 if keep else INTERRUPTED,
    )


def _run(stack: ExitStack, console: Console, asked: Asked) -> None:
    console.rule("Tailrace: a real Triton, two tiers of one task, and the gateway before them")
    environment = find_environment()
    if asked.redis:
        find_program()  # before anybody has waited for anything
    with step(console, "training the models on scikit-learn's digits (a few seconds, once)"):
        digits = prepare(environment)
    say(console, f"{digits.trained_on} digits trained on, {len(digits.images)} held out for every figure below")
    say(
        console,
        f"cost of one row, computing only: {SMALL} {digits.small_ms:.3f} ms (logistic regression), "
        f"{LARGE} {digits.large_ms:.1f} ms (RBF SVM and 150 trees)",
    )
    triton = TritonServer(TritonOptions(repositories=(digits.repository,)), environment)
    with step(console, "starting Triton"):
        stack.enter_context(triton)
    with step(console, "starting the gateway"):
        gateway = stack.enter_context(GatewayProcess(configuration(triton)))
    say(console, f"Triton at {triton.http_url}, Tailrace at {gateway.http_url}, metrics at {gateway.admin_url}")

    client = stack.enter_context(triton_http.InferenceServerClient(gateway.http_address))
    seen = slice(0, min(len(digits.images) - UNSEEN, asked.digits_max or len(digits.images)))
    measured = measure(console, client, triton, digits.images[seen], digits.labels[seen])
    console.print(table(measured))
    _break_and_mend(console, triton, gateway, digits)
    second = act(stack, console, triton, digits.ranking, asked.redis)
    _farewell(console, triton, (gateway, second), asked)
    if asked.keep:
        console.print("All of it is running. Ctrl-C stops it.")
        signal.pause()


def configuration(triton: TritonServer) -> dict[str, ConfigValue]:
    """The gateway's configuration: one cascade under two names, which differ in how long answers are fresh."""
    tiers: list[ConfigValue] = [
        {
            "backend": "triton",
            "model": SMALL,
            "accept": {"output": "probabilities", "rule": "margin", "at_least": MARGIN},
        },
        {"backend": "triton", "model": LARGE},
    ]
    return {
        "backends": {"triton": {"http": [triton.http_url]}},
        "routes": {
            "digits": {"tiers": tiers, "cache": {"ttl": "10m", "max_stale": "1h"}},
            "digits_brief": {
                "tiers": tiers,
                "cache": {"ttl": f"{STALE_TTL_SECONDS}s", "max_stale": "1h"},
            },
        },
    }


def _break_and_mend(console: Console, triton: TritonServer, gateway: GatewayProcess, digits: Digits) -> None:
    known, unseen = digits.images[:REPEATED], digits.images[-UNSEEN:]
    for image in known:
        status, _, _ = ask(gateway, "digits_brief", image)
        if status != http.client.OK:
            raise DemoFailed(f"route digits_brief answered {status} while Triton was well")
    console.rule("Triton stops")
    with step(console, "stopping Triton"):
        triton.stop()
    say(console, f"Triton is stopped. Route digits_brief keeps answers fresh for {STALE_TTL_SECONDS} s only.")
    _countdown(console, STALE_TTL_SECONDS)
    fresh = _show(console, gateway, FRESH_WORDS, "digits", known[0])
    _expect(fresh, http.client.OK, "cache=hit", "a digit that is fresh for 10 minutes")
    stale = _show(console, gateway, STALE_WORDS, "digits_brief", known[0])
    _expect(stale, http.client.OK, "cache=stale", "a digit whose answer is old")
    for image in known:
        _expect(ask(gateway, "digits_brief", image), http.client.OK, "cache=stale", "a repeated digit")
    say(console, f"{REPEATED} of {REPEATED} repeated digits got an answer, each labelled stale")
    new = _show(console, gateway, NEW_WORDS, "digits_brief", unseen[0])
    _expect(new, http.client.SERVICE_UNAVAILABLE, "", "a digit never seen before")
    console.rule("Triton starts again")
    with step(console, "starting Triton"):
        triton.start()
    started = time.monotonic()
    with step(console, "asking for the new digit until it is answered"):
        answer = _until_fresh(gateway, unseen[0])
    say(
        console,
        f"fresh answers {time.monotonic() - started:.1f} s after Triton was ready; the gateway was not restarted",
    )
    _print_answer(console, answer)


def _expect(answer: Answer, status: int, provenance: str, what: str) -> None:
    """The demo claims nothing that it did not see."""
    found = answer[1].get("Tailrace-Provenance", "")
    if answer[0] != status or provenance not in found:
        raise DemoFailed(f"{what} got {answer[0]} ({found or 'no provenance'}), expected {status} {provenance}")


def _until_fresh(gateway: GatewayProcess, image: Images) -> Answer:
    end = time.monotonic() + RECOVERY_SECONDS_MAX
    while time.monotonic() < end:
        answer = ask(gateway, "digits_brief", image)
        if answer[0] == http.client.OK and "cache=stale" not in answer[1].get("Tailrace-Provenance", ""):
            return answer
        time.sleep(0.1)
    raise DemoFailed(f"no fresh answer within {RECOVERY_SECONDS_MAX:.0f} s of Triton's return")


def ask(gateway: GatewayProcess, model: str, image: Images) -> Answer:
    """One infer request in JSON by plain HTTP, because tritonclient does not show an answer's headers."""
    host, _, port = gateway.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.ravel().tolist()}
    try:
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": name} for name in WANTED]})
        connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, {name.title(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _show(console: Console, gateway: GatewayProcess, what: str, route: str, image: Images) -> Answer:
    answer = ask(gateway, route, image)
    say(console, what)
    _print_answer(console, answer)
    return answer


def _print_answer(console: Console, answer: Answer) -> None:
    status, headers, body = answer
    lines = [f"HTTP {status} {http.client.responses.get(status, '')}"]
    lines += [f"{name}: {headers[name]}" for name in SHOWN_HEADERS if name in headers]
    document = json.loads(body)
    if status == http.client.OK:
        label = next(output["data"][0] for output in document["outputs"] if output["name"] == "label")
        lines.append(f"label {label}")
    else:
        lines.append(json.dumps(document))
    quote(console, lines, status == http.client.OK)


def _countdown(console: Console, seconds: int) -> None:
    with Live(console=console, transient=True, auto_refresh=False) as live:
        for left in range(seconds + 1, 0, -1):
            live.update(Text(f"  waiting until those answers are old: {left} s"), refresh=True)
            time.sleep(1)


def _farewell(
    console: Console, triton: TritonServer, gateways: tuple[GatewayProcess, GatewayProcess], asked: Asked
) -> None:
    gateway, second = gateways
    console.rule(f"done in {time.monotonic() - asked.began:.0f} s")
    pixels = "'$(yes 8 | head -64 | paste -sd,)'"
    tensor = f'{{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": [{pixels}]}}'
    commands: Sequence[str] = (
        f"curl -s {gateway.http_url}/v2/models/digits",
        f"curl -si {gateway.http_url}/v2/models/digits/infer -d '{{\"inputs\": [{tensor}]}}'   # and once more",
        f"curl -s {gateway.admin_url}/metrics | grep tailrace",
        f'curl -s {second.http_url}/v1/predict/rank -d \'{{"inputs": {{"user": [7], "items": [1, 2, 3]}}}}\'',
        f"curl -s {second.admin_url}/metrics | grep tailrace_table",
        f"{_command()} serve --upstream {triton.http_url}   # another gateway, which changes nothing",
    )
    if asked.keep:
        console.print("By hand:")
    else:
        console.print("By hand (these addresses end with this run):")
        console.print(Text(f"    {_command()} demo --keep   # the same, and all stays up until Ctrl-C", style="green"))
    for command in commands:
        console.print(Text("    " + command, style="green"), soft_wrap=True)


def _command() -> str:
    """How this program was called, for commands that can be copied."""
    called = sys.argv[0]
    return os.path.relpath(called) if os.path.basename(called) == "tailrace" else "tailrace"


if __name__ == "__main__":
    sys.exit(main("--keep" in sys.argv[1:]))
