"""BentoML: one worker.   bentoml serve bentoml_server:Echo --port PORT"""

import bentoml
from echo import PATH, answer


@bentoml.service(workers=1)
class Echo:
    @bentoml.api(route=PATH)
    def infer(self, id: str, inputs: list) -> dict:
        return answer({"id": id, "inputs": inputs})
