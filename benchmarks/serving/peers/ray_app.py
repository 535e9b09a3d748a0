"""Ray Serve: `@serve.batch` without a wait; started with its throughput mode and HAProxy. https://docs.ray.io/en/latest/serve"""

import os
import signal

import lightgbm
import numpy as np
import ray
from ray import serve
from starlette.requests import Request

MODEL = os.environ["MODEL"]


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Trees:
    def __init__(self):
        self.booster = lightgbm.Booster(model_file=MODEL)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0)
    async def predict(self, xs):
        return self.booster.predict(np.array(xs)).tolist()

    async def __call__(self, request: Request):
        return {"p": await self.predict((await request.json())["x"])}


if __name__ == "__main__":
    ray.init(
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=80 * 2**20,
    )
    quiet = {"enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])}, logging_config=quiet)
    serve.run(Trees.bind(), route_prefix="/", logging_config=quiet)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
