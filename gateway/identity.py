"""When two requests to a route are the same one: what of a request is in the key of its answer (DESIGN section 6).

Rule of this file: which parts decide an answer, and whose answers a caller may have. How they become bytes is
``cache/digest.py``'s; in which epoch they are true is the route's.
"""

from __future__ import annotations

import msgspec

from cache.digest import RequestDigester, request_digest
from cache.memo import Memo
from gateway.admission.auth import Caller
from tiers.facts import ModelFacts
from tiers.inference import SCHEDULING_PARAMETERS, Form, InferRequest, Parameters
from tiers.v2.forms import FORMS_MAX


class Identity:
    """Of one route's requests. ``is_shared``: one tenant's answers are the others' too."""

    def __init__(self, route: str, is_shared: bool) -> None:
        self._route = route
        self._is_shared = is_shared
        self._digesters: Memo[tuple[Form, str, str], RequestDigester] = Memo(FORMS_MAX)

    def tenant(self, caller: Caller) -> str:
        """Whose answers a caller may have."""
        return "" if self._is_shared else caller.tenant

    def uncacheable(self, request: InferRequest) -> str:
        """Why a request is never cached, in one word; empty if it may be."""
        if request.form is not None:
            return ""  # no form has either
        if request.in_shared_memory:
            return "shared-memory"
        return "sequence" if request.in_sequence else ""

    def for_all(self, request: InferRequest) -> InferRequest:
        """A request as a flight sends it: the timeout and the priority of the caller who began it are not the
        others'."""
        if SCHEDULING_PARAMETERS.isdisjoint(request.parameters):
            return request
        return msgspec.structs.replace(request, parameters=_semantic(request), form=None)

    def digest(self, caller: Caller, request: InferRequest) -> bytes:
        """What makes two requests the same one, but for the epoch."""
        tenant = self.tenant(caller)
        form = request.form
        if form is None:
            return request_digest(
                route=self._route,
                tenant=tenant,
                version=request.version,
                inputs=request.inputs,
                parameters=_semantic(request),
                outputs=_asked(request),
            )
        key = form, tenant, request.version
        digester = self._digesters.get(key)
        if digester is None:
            digester = RequestDigester(
                route=self._route,
                tenant=tenant,
                version=request.version,
                inputs=form.tensors,
                parameters=_semantic(request),
                outputs=_asked(request),
            )
            self._digesters.put(key, digester)
        inputs = request.inputs
        return digester((inputs[0].data,) if len(inputs) == 1 else [tensor.data for tensor in inputs])


def stateful(facts: ModelFacts) -> str:
    """Why a model's answers are never cached, in one word; empty if they may be."""
    if facts.sequence:
        return "sequence"
    return "decoupled" if facts.decoupled else ""


def _semantic(request: InferRequest) -> Parameters:
    """The parameters that say what to compute."""
    if SCHEDULING_PARAMETERS.isdisjoint(request.parameters):
        return request.parameters
    return {name: value for name, value in request.parameters.items() if name not in SCHEDULING_PARAMETERS}


def _asked(request: InferRequest) -> list[tuple[str, Parameters]]:
    return [(output.name, output.parameters) for output in request.outputs]
