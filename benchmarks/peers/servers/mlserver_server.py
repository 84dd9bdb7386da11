"""MLServer: no worker processes beside the one that serves.   python mlserver_server.py PORT"""

import asyncio
import sys

from echo import answer
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse


class Echo(MLModel):
    async def load(self):
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        values = payload.inputs[0].data
        inputs = [{"data": getattr(values, "root", values)}]
        return InferenceResponse(**answer({"id": payload.id, "inputs": inputs}))


async def main(port):
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
        logging_settings=None,
    )
    server = MLServer(settings)
    await server.start([ModelSettings(name="bench_fp32", implementation=Echo)])


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
