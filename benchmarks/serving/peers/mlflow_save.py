"""Save the trees as an MLflow model, for `mlflow models serve`."""

import os
import sys

import lightgbm
import mlflow.lightgbm

mlflow.lightgbm.save_model(lightgbm.Booster(model_file=os.environ["MODEL"]), sys.argv[1])
