"""What a request target asks for: KServe v2 paths with Triton's extensions, and one of ours, as a value.

Rule of this file: pure. A target that two readers could understand in two ways (dot segments, empty
segments, encoded slashes) is refused, so that what is judged here is what Triton then acts on. The
paths are Triton's HTTP/REST extension documents'.
"""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import quote, unquote

import msgspec

from gateway.config_server import Switch
from gateway.problem import Refused, malformed

Kind = Literal["live", "ready", "infer", "metadata", "model-ready", "stats", "model-other", "predict", "other"]

_MODEL_PATH: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(.+))?")
_PREDICT_PATH: Final = re.compile(r"/v1/predict/([^/]+)(?:/versions/([^/]+))?")
_KINDS: Final[dict[str | None, Kind]] = {
    None: "metadata",
    "infer": "infer",
    "ready": "model-ready",
    "stats": "stats",
}
_AMBIGUOUS: Final = re.compile(r"//|/(?:\.|%2e){1,2}(?:/|$)|%2f|%5c|%00|\\|[\x00-\x20\x7f]", re.IGNORECASE)
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

# What each path changes, tried in order on the decoded, lower-cased path. They are wider than Triton's
# own patterns on purpose: a path that Triton does not know costs nothing to refuse.
_SWITCHES: Final[tuple[tuple[re.Pattern[str], Switch, bool], ...]] = (
    (re.compile(r"/v2/repository/.*load/*"), "repository", False),
    (re.compile(r"/v2/logging.*"), "logging", True),
    (re.compile(r"/v2/(?:.*/)?trace/.*"), "trace", True),
    (re.compile(r"/v2/[a-z]*sharedmemory/.*register/*"), "shared_memory", False),
)


class Target(msgspec.Struct, frozen=True):
    """One request target. ``raw`` is as it came, path and query; ``rest`` what follows the model."""

    kind: Kind
    raw: str
    model: str = ""
    version: str = ""
    rest: str = ""
    changes: Switch | None = None
    loads: str = ""
    """The model that a repository load or unload names."""

    def works(self, method: str) -> bool:
        """Whether it puts work on a model: a POST to one of Triton's, or to whatever else another server has."""
        return method == "POST" and (bool(self.model) or not self.raw.startswith("/v2"))

    def of_model(self, model: str, version: str) -> str:
        """This target's path and query, asked of another model (a tier behind a route)."""
        path = f"/v2/models/{quote(model, safe='')}"
        if version:
            path += f"/versions/{quote(version, safe='')}"
        if self.rest:
            path += f"/{quote(self.rest)}"
        _, mark, query = self.raw.partition("?")
        return path + mark + query


def target_of(method: str, raw: str) -> Target:
    """Read a request target in origin form. Raises Refused (400) for one with two meanings."""
    path = raw.partition("?")[0]
    if not path.startswith("/"):
        raise Refused(malformed("The request target must be a path that starts with a slash.", "target"))
    if _AMBIGUOUS.search(path):
        raise Refused(
            malformed("The path has an empty, dot, or encoded-slash segment; send it in plain form.", "target")
        )
    try:
        plain = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise Refused(malformed("The path's percent-encoding is not UTF-8.", "utf8")) from None
    if _AMBIGUOUS.search(plain.replace(" ", "_")):
        raise Refused(malformed("The path is encoded twice; send it in plain form.", "target"))
    if plain == "/v2/health/live":
        return Target("live", raw)
    if plain == "/v2/health/ready":
        return Target("ready", raw)
    changes = _change_of(method, plain)
    loads = ""
    if changes == "repository":
        parts = plain.split("/")
        loads = parts[-2] if len(parts) > 2 else ""
    predicted = _PREDICT_PATH.fullmatch(plain)
    if predicted is not None:
        return Target("predict", raw, predicted[1], predicted[2] or "")
    found = _MODEL_PATH.fullmatch(plain)
    if found is None or plain == "/v2/models/stats":
        return Target("other", raw, changes=changes, loads=loads)
    model, version, rest = found.groups()
    kind = _KINDS.get(rest, "model-other")
    return Target(kind, raw, model, version or "", rest or "", changes)


def _change_of(method: str, plain: str) -> Switch | None:
    lowered = plain.lower()
    for pattern, switch, only_writes in _SWITCHES:
        if pattern.fullmatch(lowered) and not (only_writes and method in _READS):
            return switch
    return None
