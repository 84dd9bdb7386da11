"""Mosec: one process in Rust for HTTP, one in Python for the model.   python mosec_server.py --port PORT"""

import json

from echo import PATH, answer
from mosec import Server, Worker


class Echo(Worker):
    def deserialize(self, data):
        return json.loads(data)

    def forward(self, data):
        return answer(data)

    def serialize(self, data):
        return json.dumps(data).encode()


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, num=1, route=PATH)
    server.run()
