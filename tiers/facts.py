"""What a model is: Triton's own words of it, the facts that they make, and when two looks show two models.

Rule of this file: values in, values out; it asks nobody. Of Triton's documents only those members are read that mean
something here.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

INSTANCES_MAX: Final = 4096
"""Of a model on one server: who tells of more tells nothing."""


class TensorFact(Struct, frozen=True):
    """One input or output of a model. ``shape`` holds -1 where any size is right, and for a
    batching model starts with the batch dimension (-1), as Triton's metadata has it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


class ModelFacts(Struct, frozen=True):
    """A model's own description. ``max_batch`` 0: the model does not batch. ``instances``: how many requests a replica
    works on at once, one each; 0: that depends on how they come, or nobody says."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    max_batch: int
    sequence: bool
    decoupled: bool
    instances: int = 0


class WireTensor(Struct):
    """A tensor in metadata."""

    name: str
    datatype: str
    shape: list[int]


class Metadata(Struct):
    """A model's metadata (``/v2/models/NAME``)."""

    name: str
    versions: list[str] = []
    inputs: list[WireTensor] = []
    outputs: list[WireTensor] = []


class ConfigInput(Struct):
    """An input in a configuration."""

    name: str
    optional: bool = False


class Policy(Struct):
    """How a model answers."""

    decoupled: bool = False


class InstanceGroup(Struct):
    """Instances of a model that are alike: ``count`` on each of ``gpus``, or without a GPU."""

    count: int = 0
    kind: str = ""
    gpus: list[int] | None = None
    passive: bool = False


_NO_GROUPS: Final = msgspec.Raw(b"[]")


class ModelConfig(Struct):
    """Its configuration (``/config``). What only helps to share a server among callers must not make a model unknown:
    it is read later, and may be anything."""

    name: str = ""
    max_batch_size: int = 0
    input: list[ConfigInput] = []
    dynamic_batching: object = None
    sequence_batching: dict[str, object] | None = None
    model_transaction_policy: Policy | None = None
    instance_group: msgspec.Raw = _NO_GROUPS


class Total(Struct):
    """How many, and how long they took together in nanoseconds."""

    count: int = 0
    ns: int = 0


class Inference(Struct):
    """Requests of one version: all their time in the server, and what of it instances worked on them."""

    success: Total = msgspec.field(default_factory=Total)
    compute_input: Total = msgspec.field(default_factory=Total)
    compute_infer: Total = msgspec.field(default_factory=Total)
    compute_output: Total = msgspec.field(default_factory=Total)


class VersionStatistics(Struct):
    """Of one version: Triton's times are milliseconds since 1970, its totals only grow while it stays loaded."""

    version: str = ""
    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: Inference = msgspec.field(default_factory=Inference)


class Statistics(Struct):
    """Statistics (``/stats``) of a model's versions."""

    model_stats: list[VersionStatistics] = []


class Spent(Struct, frozen=True):
    """Totals of all versions, which only ever grow while a model stays loaded: requests, their nanoseconds in the
    server, and what of these an instance worked on each."""

    requests: int = 0
    served_ns: int = 0
    computed_ns: int = 0


class Capacity(Struct, frozen=True):
    """What a model's servers can do: ``places`` requests at once, each of which takes an instance ``computed`` seconds
    and the server ``served`` seconds in all, in the mean of what they did lately."""

    places: int
    computed: float
    served: float


class Sight(Struct, frozen=True):
    """One look at a model on one replica. ``work`` maps a version to its totals, which only ever grow
    while a model stays loaded: (successes, nanoseconds, inferences, executions). ``last`` maps a version to
    when it last executed, in Triton's milliseconds since 1970; Triton counts that execution in the same breath."""

    versions: frozenset[str]
    config_digest: bytes
    work: dict[str, tuple[int, ...]]
    last: dict[str, int] = {}  # a version that is not in it has never executed
    spent: Spent = Spent()
    gone: bool = False
    lost: bool = False  # the replica could not be reached after this look

    def executions(self, version: str) -> int:
        return self.work[version][-1] if version in self.work else 0


def changed(before: Sight, after: Sight) -> bool:
    """Whether the later look shows another model than the earlier one (same model name, same replica)."""
    if after.gone:
        return False  # nothing answers, so nothing new is served; it is told when it is back
    if before.gone or before.versions != after.versions or before.config_digest != after.config_digest:
        return True
    if before.lost and not any(map(any, after.work.values())):
        return True  # away, and back without any work done: as good as certainly a new process
    for version, moment in after.last.items():
        if moment != before.last.get(version, 0) and after.executions(version) <= before.executions(version):
            return True  # it has worked since, and its count does not tell: it began again from nothing
    return any(
        new < old
        for version, totals in before.work.items()
        for old, new in zip(totals, after.work.get(version, totals), strict=True)
    )


def read_facts(metadata: Metadata, config: ModelConfig) -> ModelFacts:
    """Facts from Triton's metadata (names, datatypes, shapes) and configuration (all else)."""
    optional = {each.name for each in config.input if each.optional}
    return ModelFacts(
        name=metadata.name,
        versions=tuple(metadata.versions),
        inputs=tuple(
            TensorFact(each.name, each.datatype, tuple(each.shape), each.name in optional) for each in metadata.inputs
        ),
        outputs=tuple(TensorFact(each.name, each.datatype, tuple(each.shape)) for each in metadata.outputs),
        max_batch=config.max_batch_size,
        sequence=config.sequence_batching is not None,
        decoupled=config.model_transaction_policy is not None and config.model_transaction_policy.decoupled,
        instances=_instances(config),
    )


def _instances(config: ModelConfig) -> int:
    """Requests that its instances work on at once. 0 where one instance may work on several: it batches, or the backend
    itself decides (``KIND_MODEL``); and where there are none, as in an ensemble."""
    decoupled = config.model_transaction_policy is not None and config.model_transaction_policy.decoupled
    if config.dynamic_batching is not None or config.sequence_batching is not None or decoupled:
        return 0
    try:
        told = msgspec.json.decode(config.instance_group, type=list[InstanceGroup])
    except msgspec.DecodeError:
        return 0
    groups = [group for group in told if not group.passive]
    if any(group.kind == "KIND_MODEL" for group in groups):
        return 0
    count = sum(max(0, group.count) * max(1, len(group.gpus or ())) for group in groups)
    return count if count <= INSTANCES_MAX else 0


def spent(statistics: Statistics) -> Spent:
    """What its versions' requests took together."""
    each = [version.inference_stats for version in statistics.model_stats]
    return Spent(
        sum(stats.success.count for stats in each),
        sum(stats.success.ns for stats in each),
        sum(stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns for stats in each),
    )


def totals(stats: VersionStatistics) -> tuple[int, ...]:
    """What only ever grows, as in ``Sight.work``."""
    success = stats.inference_stats.success
    return (success.count, success.ns, stats.inference_count, stats.execution_count)
