"""Whether a well-formed answer is the answer to what was asked, and how long a server is told to take.

Rule of this file: pure, and the same for every protocol in which a server is asked.
"""

from __future__ import annotations

import math
from typing import Final

from degrade.ladder import Failure
from tiers.inference import InferRequest, InferResponse, UpstreamError

_MICROSECONDS: Final = 1_000_000


def judged(url: str, request: InferRequest, response: InferResponse) -> InferResponse:
    """The answer, if it is the one of this model and has all that was asked for. Raises UpstreamError."""
    fault = _fault(request, response)
    if fault:
        raise UpstreamError(Failure.BROKEN, f"{url} answered {fault}", 200)
    held = {output.name for output in response.outputs}
    missing = [output.name for output in request.outputs if output.name not in held]
    if missing:  # Triton lets a model leave an output out, which it may do for one input and not for another
        raise UpstreamError(Failure.RAISED, f"{url} answered without output {missing[0]!r}", 200)
    return response


def timeout_of(request: InferRequest, remaining: float) -> int | None:
    """The remaining time for Triton's ``timeout`` parameter (microseconds); None where the caller's own, which is
    sooner, stays or there is no deadline."""
    if math.isinf(remaining):
        return None
    microseconds = max(1, int(remaining * _MICROSECONDS))
    own = request.parameters.get("timeout")
    return None if isinstance(own, int) and 0 < own < microseconds else microseconds


def _fault(request: InferRequest, response: InferResponse) -> str:
    """What makes a well-formed answer not the answer of this model; empty if nothing does."""
    if response.model != request.model:
        return f"for model {response.model!r} where {request.model!r} was asked"
    if request.version and response.version != request.version:
        return f"for version {response.version!r} where {request.version!r} was asked"
    return ""
