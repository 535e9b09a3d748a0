"""FastAPI: a pydantic model in and out, one prediction a request, on the event loop (a plain `def` goes to a thread each time and is slower)."""

import os

import lightgbm
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

booster = lightgbm.Booster(model_file=os.environ["MODEL"])
app = FastAPI()


class Asked(BaseModel):
    x: list[float]


class Answer(BaseModel):
    p: float


@app.post("/predict")
async def predict(asked: Asked) -> Answer:
    return Answer(p=booster.predict(np.array([asked.x]))[0])
