"""PyTriton: `@batch` and Triton's dynamic batcher without a delay. https://triton-inference-server.github.io/pytriton"""

import os

import lightgbm
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

booster = lightgbm.Booster(model_file=os.environ["MODEL"])


@batch
def infer(x):
    return [booster.predict(x).reshape(-1, 1)]


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1", http_port=int(os.environ["PORT"]), allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="m",
            infer_func=infer,
            inputs=[Tensor(name="x", dtype=np.float64, shape=(30,))],
            outputs=[Tensor(name="p", dtype=np.float64, shape=(1,))],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
