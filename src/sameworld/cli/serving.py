"""Commands that serve models, and that ask and tell a running server."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from sameworld.cli import show
from sameworld.cli.options import common, registry_option, state_option
from sameworld.errors import DefinitionError, nearest


@click.command()
@click.argument("models", nargs=-1)
@common
@registry_option
@state_option
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Anything but loopback needs SAMEWORLD_TOKEN."
)
@click.option("--port", default=8000, show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="How many processes answer behind the port; a dead or frozen one is replaced while the others answer.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=0.2,
    show_default=True,
    help="Seconds in which a server that was told to stop says 503 at /readyz and still takes new connections.",
)
@click.option(
    "--guarded-memory",
    default="2GB",
    show_default=True,
    help="How much more than at its start the process of a guarded model may take, such as 500MB.",
)
@click.option(
    "--memory",
    help="What models may take in each worker, such as 2GB, with the processes of guarded ones: those asked the longest ago are unloaded, and come back when they are asked. All are kept without it.",
)
@click.option(
    "--cache",
    metavar="MODEL=SIZE",
    multiple=True,
    help="Keep a model's answers in each worker, such as churn=64MB, and give them again for the same features of the same version. May be repeated; none are kept without it.",
)
@click.option(
    "--store",
    metavar="ADDRESS",
    help="Where several hosts share one store, such as redis://HOST:6379/0: this one publishes every commit there and reads there. Needs sameworld[redis].",
)
@click.option(
    "--follow", is_flag=True, help="Another host takes events and publishes to --store; this one reads."
)
@click.option(
    "--replay", is_flag=True, help="Moments and available times come from outside, in the order of time."
)
@click.option(
    "--cutover",
    help="ISO 8601: rows readable before it come from the files, later ones from the event log. Recorded once; now by default.",
)
@click.option(
    "--durability",
    type=click.Choice(["process", "disk"]),
    default="disk",
    show_default=True,
    help="What an acknowledged event survives: a kill, or a power cut.",
)
@click.option(
    "--prediction-durability",
    type=click.Choice(["process", "disk"]),
    default="process",
    show_default=True,
    help="What a prediction that is said to be logged survives: a kill, or a power cut.",
)
@click.option(
    "--keep-predictions",
    metavar="SIZE",
    help="Keep at most so much of the rotated prediction log, such as 50GB. All by default.",
)
@click.option(
    "--keep-predictions-for",
    metavar="DURATION",
    help="Remove rotated predictions after so long, such as 90d. Never by default.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="SAMEWORLD_CONFIG",
    help="A TOML file whose table [serve] has settings named as these flags. SAMEWORLD_* variables come before it, flags before both.",
)
@click.option(
    "--show-config", is_flag=True, help="Print every setting and where it was said, and serve nothing."
)
@click.option("--anew", is_flag=True, help="Serve MODELS, and forget what control routes had changed.")
@click.pass_context
def serve(
    context: click.Context, as_json: bool, file: Path | None, show_config: bool, anew: bool, **flags: Any
) -> None:
    """Serve MODELS (all trained ones by default; NAME or NAME=BUNDLE) until interrupted. Once control routes have changed what is served, that is served instead."""
    from sameworld.definitions.durations import microseconds  # noqa: PLC0415
    from sameworld.server.config import ServerConfig  # noqa: PLC0415
    from sameworld.server.recorded import forget, recorded  # noqa: PLC0415
    from sameworld.server.run import fill  # noqa: PLC0415
    from sameworld.server.run import serve as run  # noqa: PLC0415
    from sameworld.server.settings import resolve  # noqa: PLC0415
    from sameworld.training.world_file import load_world  # noqa: PLC0415

    given = {
        name: [*value] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for name, value in flags.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    resolved = resolve(given, os.environ, file)
    if show_config:
        _show_settings(resolved.shown(), as_json=as_json)
        return
    told = resolved.settings
    loaded = load_world(Path(told.world))
    state = Path(told.state).resolve()
    if anew:
        forget(state)
    last = recorded(state)
    config = ServerConfig(
        world=str(loaded.path), registry=str(Path(told.registry).resolve()), state=str(state), replay=told.replay, durability=told.durability, prediction_durability=told.prediction_durability,
        host=told.host, port=told.port, token=told.token, folder=str(loaded.folder),
        workers=told.workers, drain_seconds=told.drain, guarded_memory_bytes=show.size(told.guarded_memory, of="--guarded-memory"),
        store=told.store, follow=told.follow, cache={},
        memory=show.size(told.memory, of="--memory") if told.memory else None,
        keep_prediction_bytes=show.size(told.keep_predictions, of="--keep-predictions") if told.keep_predictions else None,
        keep_prediction_days=microseconds(told.keep_predictions_for, of="--keep-predictions-for") / 86_400e6 if told.keep_predictions_for else None,
        models=last.models if last is not None else _wanted(told.models or list(loaded.models), Path(told.registry)),
    )  # fmt: skip
    config = msgspec.structs.replace(config, cache=_cached(told.cache, {*config.models, *loaded.models}))
    config.check()
    fill(config, cutover=show.instant(told.cutover, "--cutover") if told.cutover else None, say=show.say)
    if last is not None:
        show.say("serving what control routes left; --anew serves what this command says")
    show.say(f"serving {', '.join(config.models)} at http://{config.host}:{config.port}")
    run(config, as_json=as_json)


def _wanted(names: list[str], registry: Path) -> dict[str, str]:
    """Give route name -> bundle address of NAMEs and NAME=BUNDLEs."""
    from sameworld.training.bundle import Registry  # noqa: PLC0415

    kept = Registry(registry)
    wanted: dict[str, str] = {}
    for given in names:
        name, _, address = given.partition("=")
        wanted[name] = address or kept.newest(name) or ""
    missing = [name for name, address in wanted.items() if not address]
    if missing:
        raise DefinitionError(
            f"No bundle of {', '.join(missing)} is in the registry.",
            where=str(registry),
            do="train first: sameworld train.",
        )
    return wanted


def _show_settings(settings: list[dict[str, Any]], *, as_json: bool) -> None:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    if as_json:
        show.json_out({"settings": settings})
        return
    table = Table("setting", "value", "from")
    for each in settings:
        value = each["value"]
        shown = " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
        table.add_row(each["setting"], Text(shown), Text(each["from"]))
    show.out.print(table)


url_option = click.option(
    "--url",
    default="http://127.0.0.1:8000",
    show_default=True,
    envvar="SAMEWORLD_URL",
    help="Where the server listens. SAMEWORLD_TOKEN is its token.",
)


def _ask(url: str, method: str, path: str, body: Any = None) -> Any:
    from sameworld.server.control_client import ask  # noqa: PLC0415

    return ask(url, method, path, body, token=os.environ.get("SAMEWORLD_TOKEN"))


@click.command()
@common
@url_option
def status(world: Path, as_json: bool, url: str) -> None:
    """Show how every model of a running server is doing: all its workers together, over the last minute."""
    told = _ask(url, "GET", "/control/status")
    if as_json:
        show.json_out(told)
        return
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("model", "version", "tier in use", "requests/s", "fallbacks", "p50, p99 ms", "sources", "since", "memory", "answers by")  # fmt: skip
    for model in told["models"]:
        cells = status_cells(model)
        table.add_row(*(Text(cell) for cell in cells), style="yellow" if model["fallbacks"] else None)
    show.out.print(table)
    memory, workers = told["memory"], told["workers"]
    budget = f" of {show.size_text(memory['budget'])}" if memory["budget"] is not None else ""
    show.out.print(
        f"{len(told['models'])} models take {show.size_text(memory['models'])}{budget} in the worker that answered; {len(workers)} workers"
    )
    for worker in workers:
        if worker["trouble"]:
            show.out.print(f"worker {worker['pid']}: {worker['trouble']}", style="red", markup=False)


def status_cells(model: dict[str, Any]) -> list[str]:
    """Give one line of the table of models."""
    latency = [model["p50_ms"], model["p99_ms"]]
    sources = [
        f"{name} {'never' if age is None else show.age_text(age)}" for name, age in model["sources"].items()
    ]
    reason = f" ({model['reason']})" if model["reason"] and model["tier"] != "model" else ""
    return [
        model["model"],
        model["version"][:8],
        (model["tier"] or "not asked yet") + reason,
        f"{model['requests_per_second']:,.1f}",
        "" if model["fallbacks"] is None else f"{model['fallbacks']:.1%}",
        ", ".join("" if value is None else f"{value:.3g}" for value in latency) if latency[0] else "",
        ", ".join(sources),
        "the start" if model["since"] is None else show.iso(model["since"] // 1_000_000 * 1_000_000),
        show.size_text(model["bytes"]) if model["loaded"] else "not loaded",
        model["execution"] or "",
    ]


def _cached(told: list[str], models: Collection[str]) -> dict[str, int]:
    """Read what `--cache` was told about models that are served, or may be once a control route says so."""
    given: dict[str, int] = {}
    for each in told:
        model, equals, size = each.partition("=")
        if not (model and equals):
            raise DefinitionError("It is not said how much is kept of which model.", where="--cache", expected="MODEL=SIZE, such as churn=64MB", found=each, do="correct it.")  # fmt: skip
        if model not in models:
            raise DefinitionError(f"There is no model {model!r}.", where="--cache", expected=f"nearest: {nearest(model, models)}", do="correct its name.")  # fmt: skip
        given[model] = show.size(size, of="--cache")
    return given


@click.group()
def models() -> None:
    """Add, replace and remove models of a running server."""


@models.command("list")
@common
@url_option
def list_models(world: Path, as_json: bool, url: str) -> None:
    """List the models that are served."""
    told = _ask(url, "GET", "/control/models")
    if as_json:
        show.json_out(told)
        return
    for model in told["models"]:
        show.out.print(f"{model['model']}={model['version']}", markup=False)


@models.command()
@click.argument("model", metavar="NAME[=BUNDLE]")
@common
@url_option
def add(model: str, world: Path, as_json: bool, url: str) -> None:
    """Serve a model, or another version of one that is served: the newest bundle in the server's registry by default."""
    name, _, version = model.partition("=")
    told = _ask(url, "POST", f"/control/models/{name}", {"version": version or None})
    if as_json:
        show.json_out(told)
        return
    instead = f" instead of {told['replaced']}" if told["replaced"] else ""
    show.out.print(f"{name}={told['version']} is served{instead}{_by(told)}", markup=False, soft_wrap=True)


@models.command()
@click.argument("model", metavar="NAME")
@common
@url_option
def remove(model: str, world: Path, as_json: bool, url: str) -> None:
    """Serve a model no more."""
    told = _ask(url, "DELETE", f"/control/models/{model}")
    if as_json:
        show.json_out(told)
        return
    show.out.print(f"{model}={told['removed']} is served no more{_by(told)}", markup=False, soft_wrap=True)


def _by(told: dict[str, Any]) -> str:
    workers = told["workers"]
    trouble = f": {told['trouble']}" if "trouble" in told else ""
    return f" ({workers['serving']} of {workers['of']} workers{trouble})"
