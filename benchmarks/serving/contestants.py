"""Who takes part: how each is started, what it is asked, and where in its answer the number stands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Row = list[float]


@dataclass(frozen=True)
class Contestant:
    """Somebody who answers. In the words of its commands {port}, {other_port}, {bin}, {libraries}, {peers}, {folder}, {paths} and {workers} are filled in.

    Args:
        name: how the table and `--only` call it.
        does: what it does for an answer, in the words of the table.
        command: starts it, in a folder of its own.
        path: where it is asked.
        body: makes a request's body of a row.
        answer: the keys that lead to the number in what it answers.
        model: which of ours it serves; empty: a peer.
        environment: its folder in .venv-serving, named as its requirements in benchmarks/serving/peers; empty: this interpreter's.
        variables: of its environment.
        files: name -> JSON that it finds in its folder.
        before: a command that is run there once.
        collector: how Python's garbage collector is set: "own" is as the contestant does it.
    """

    name: str
    does: str
    command: str
    path: str
    body: Callable[[Row], Any]
    answer: Sequence[str | int]
    model: str = ""
    environment: str = ""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, Any] = field(default_factory=dict[str, Any])
    before: str = ""
    collector: str = "own"

    @property
    def wanted(self) -> Sequence[str]:
        """Texts that each of its answers must contain: of ours, that the model gave it and that it is logged."""
        return ('"tier":"model"', '"logged":true') if self.model else ()

    @property
    def of_entities(self) -> bool:
        """Whether it is asked about entities, whose features it reads, instead of being told 30 numbers."""
        return self.model == "honest"


COLLECTIONS = "collections"
"""The file, in the benchmark's folder, with the microseconds of each."""
COLLECTORS = ("own", "python", "off")
"""How Python's garbage collector may be set: as the contestant does it, as Python does where nobody says anything, or not at all."""


def with_collector(contestant: Contestant, collector: str) -> Contestant:
    """Give a contestant whose garbage collector is watched, and set otherwise or not, in all its processes."""
    paths = [str(Path(__file__).parent / "collector"), "{paths}"]
    hook = {
        "PYTHONPATH": os.pathsep.join(paths),
        "COLLECTOR": collector,
        "COLLECTIONS": f"{{folder}}/{COLLECTIONS}",
    }
    name = f"{contestant.name}, collector {collector}"
    return replace(contestant, name=name, collector=collector, variables={**contestant.variables, **hook})


def _ours(name: str, model: str, does: str, options: str = "") -> Contestant:
    command = (
        f"{{bin}}/python -m sameworld.cli.main serve {model} --anew --world {{folder}}/world.py"
        f" --registry {{folder}}/registry --state {{folder}}/state-{model} --port {{port}} --workers {{workers}}{options}"
    )
    path = f"/v1/models/{model}/predict"

    def body(row: Row) -> Any:
        return {"request": {f"x{i}": value for i, value in enumerate(row)}}

    return Contestant(name, does, command, path, body, ("predictions", 0, "value"), model)


def _named(row: Row) -> Any:
    return {"x": row}


def _nested(row: Row) -> Any:
    return {"x": [row]}


def _inputs(row: Row) -> Any:
    return {"inputs": [row]}


def _open_inference(row: Row) -> Any:
    return {"inputs": [{"name": "x", "shape": [1, len(row)], "datatype": "FP64", "data": row}]}


_OPEN_INFERENCE_ANSWER = ("outputs", 0, "data", 0)
_ALL = [
    _ours("sameworld", "bare", "model, decision logged"),
    _ours("sameworld kept", "bare", "kept answers to 10,000 rows, decision logged", " --cache bare=64MB"),
    _ours("sameworld guarded", "guarded", "model in a killable process, decision logged"),
    _ours("sameworld honest", "honest", "9 features of 3 entities read, model, decision logged"),
    Contestant(
        "FastAPI",
        "model",
        "{bin}/uvicorn --host 127.0.0.1 --port {port} --workers 1 --no-access-log fastapi_app:app",
        "/predict",
        _named,
        ("p",),
        environment="fastapi",
    ),
    Contestant(
        "PyTriton",
        "model, in batches",
        "{bin}/python {peers}/pytriton_app.py",
        "/v2/models/m/infer",
        _open_inference,
        _OPEN_INFERENCE_ANSWER,
        environment="pytriton",
        variables={"LD_LIBRARY_PATH": "{libraries}"},  # Triton's stub must find this Python's libpython
    ),
    Contestant(
        "Ray Serve",
        "model, in batches; HAProxy",
        "{bin}/python {peers}/ray_app.py",
        "/",
        _named,
        ("p",),
        environment="ray",
        variables={
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        },
    ),
    Contestant(
        "MLServer",
        "model",
        "{bin}/mlserver start .",
        "/v2/models/m/infer",
        _open_inference,
        _OPEN_INFERENCE_ANSWER,
        environment="mlserver",
        variables={
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{other_port}",
            "MLSERVER_METRICS_PORT": "0",
        },
        files={
            "model-settings.json": {
                "name": "m",
                "implementation": "mlserver_lightgbm.LightGBMModel",
                "parameters": {"uri": "{model}"},
            }
        },
    ),
    Contestant(
        "LitServe",
        "model",
        "{bin}/python {peers}/litserve_app.py",
        "/predict",
        _named,
        ("p",),
        environment="litserve",
    ),
    Contestant(
        "MLflow",
        "model",
        "{bin}/mlflow models serve -m saved --env-manager local --host 127.0.0.1 --port {port} --workers 1",
        "/invocations",
        _inputs,
        ("predictions", 0),
        environment="mlflow",
        variables={"UVICORN_ACCESS_LOG": "false"},
        before="{bin}/python {peers}/mlflow_save.py saved",
    ),
    Contestant(
        "BentoML",
        "model, in batches",
        "{bin}/bentoml serve bentoml_app:Trees --host 127.0.0.1 --port {port}",
        "/predict",
        _nested,
        (0,),
        environment="bentoml",
    ),
]
CONTESTANTS = {contestant.name: contestant for contestant in _ALL}
