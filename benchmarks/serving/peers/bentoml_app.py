"""BentoML: `@bentoml.api(batchable=True)`, NumPy in and out. https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html"""

import os

import bentoml
import lightgbm
import numpy as np


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Trees:
    def __init__(self) -> None:
        self.booster = lightgbm.Booster(model_file=os.environ["MODEL"])

    @bentoml.api(batchable=True, max_batch_size=64)
    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.booster.predict(x)
