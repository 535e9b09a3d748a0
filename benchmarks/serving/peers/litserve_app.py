"""LitServe: one prediction a request; with its batches it answers as many, and a lone request waits the window out. https://lightning.ai/docs/litserve"""

import os

import lightgbm
import litserve
import numpy as np


class Trees(litserve.LitAPI):
    def setup(self, device):
        self.booster = lightgbm.Booster(model_file=os.environ["MODEL"])

    def decode_request(self, request):
        return request["x"]

    def predict(self, x):
        return self.booster.predict(np.array([x]))

    def encode_response(self, output):
        return {"p": float(output[0])}


if __name__ == "__main__":
    server = litserve.LitServer(Trees(), accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )
