"""The command line. Heavy libraries load in the command that needs them: `sameworld --help` compiles nothing."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sameworld import __version__
from sameworld.cli import show
from sameworld.errors import CacheError, DefinitionError, Problems, SameworldError

if TYPE_CHECKING:
    from sameworld.engines.cache import Entry

_Command = Callable[..., Any]


def _told(command: _Command) -> _Command:
    """Print errors as this tool does."""

    @wraps(command)
    def run(*args: Any, as_json: bool, **options: Any) -> None:
        try:
            command(*args, as_json=as_json, **options)
        except SameworldError as error:
            show.failure(error, as_json=as_json)
            sys.exit(1)
        except KeyboardInterrupt:
            show.err.print("Interrupted; nothing is half-written.", style="yellow")
            sys.exit(130)

    return run


def _common(command: _Command) -> _Command:
    """Add --world and --json, and print errors as this tool does."""

    @click.option(
        "--world",
        "world",
        type=click.Path(path_type=Path),
        default=Path("world.py"),
        show_default=True,
        help="The world file.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @_told
    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        command(*args, **options)

    return run


_registry = click.option(
    "--registry",
    type=click.Path(path_type=Path),
    default=Path(".sameworld"),
    show_default=True,
    help="Where bundles lie.",
)
_state = click.option(
    "--state",
    type=click.Path(path_type=Path),
    default=Path(".sameworld/state"),
    show_default=True,
    help="Where logs and the store lie.",
)


_against = click.option(
    "--against",
    type=click.Choice(["log", "files"]),
    default="log",
    show_default=True,
    help="log: files up to the cutover and the event log after it. files: the files alone.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sameworld")
def main() -> None:
    """Train a model and serve it in the same world, provably."""


@main.command()
@_common
def check(world: Path, as_json: bool) -> None:
    """Read the world file and its data, and name everything that is wrong, at once."""
    from sameworld.engines.duckdb import DuckDBEngine  # noqa: PLC0415 # see the module's first lines
    from sameworld.training.training_set import problems_of  # noqa: PLC0415
    from sameworld.training.world_file import load_world  # noqa: PLC0415

    loaded = load_world(world)
    engine = DuckDBEngine(loaded.folder)
    problems = [problem for model in loaded.models.values() for problem in problems_of(model, engine)]
    if problems:
        raise Problems(f"The world {world.name}", problems)
    summary: dict[str, Any] = {
        name: {
            "content": model.content,
            "features": len(model.features),
            "sources": [source.name for source in model.sources],
            "output": model.output,
        }
        for name, model in loaded.models.items()
    }
    if as_json:
        show.json_out({"world": str(world), "models": summary})
        return
    for name, facts in summary.items():
        show.out.print(
            f"{name}: {facts['features']} features of {', '.join(facts['sources'])}; answers a {facts['output']}; content {facts['content']}"
        )
    show.out.print("Nothing is wrong.", style="green")


@main.command()
@click.argument("model", required=False)
@_common
@_registry
@click.option(
    "--until",
    help="The time of training, ISO 8601; what was asked after it is for the score. By default 85 % of the moments come before.",
)
@click.option(
    "--in-world",
    type=click.Choice(["as_of", "event_time"]),
    default="as_of",
    show_default=True,
    help="event_time: as a join on event times would have it.",
)
def train(
    model: str | None, world: Path, as_json: bool, registry: Path, until: str | None, in_world: Any
) -> None:
    """Train MODEL (or the world's only one) and save its bundle."""
    from sameworld.training.fit import train as train_model  # noqa: PLC0415
    from sameworld.training.world_file import load_world  # noqa: PLC0415

    loaded = load_world(world)
    trained = train_model(
        loaded.model(model),
        registry=registry,
        world=in_world,
        until=show.instant(until, "--until") if until else None,
        folder=loaded.folder,
        say=show.say,
    )
    facts: dict[str, Any] = {
        "model": trained.bundle.model.name,
        "bundle": trained.bundle.address,
        "world": in_world,
        "until": show.iso(trained.bundle.description.trained_until),
        "metric": trained.metric,
        "scores": {
            name: {"value": s.value, "low": s.low, "high": s.high}
            for name, s in trained.scores.items()
            if name != "log_loss"
        },
        "rows": trained.rows,
        "seconds": trained.seconds,
    }
    if as_json:
        show.json_out(facts)
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table(
        "",
        trained.metric,
        "95 % interval",
        title=f"{facts['model']} on {trained.rows['test']:,} moments after {facts['until']}",
    )
    for name, score in facts["scores"].items():
        table.add_row(name, f"{score['value']:.4f}", f"{score['low']:.4f} to {score['high']:.4f}")
    show.out.print(table)
    rows = trained.rows
    show.out.print(
        f"learnt from {rows['fit']:,}, calibrated on {rows['calibration']:,}; left out: {rows['immature']:,} not mature yet, {rows['unlabelled']:,} without a label"
    )
    show.out.print(f"seconds: {', '.join(f'{name} {value:.1f}' for name, value in trained.seconds.items())}")
    show.out.print(f"bundle {facts['bundle']}")


@main.command("training-set")
@click.argument("model", required=False)
@_common
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder for the Parquet files.",
)
@click.option(
    "--rows-a-file",
    type=click.IntRange(min=1),
    default=1_000_000,
    show_default=True,
    help="How many moments are computed and written at a time.",
)
@click.option(
    "--partition-by",
    type=click.Choice(["day", "month"]),
    help="Folders such as day=2013-01-01, of the moments' times in UTC.",
)
@click.option(
    "--as-of",
    help="ISO 8601: labels are as known then. By default that of the run that goes on; now for a new one.",
)
@click.option(
    "--in-world",
    type=click.Choice(["as_of", "event_time"]),
    default="as_of",
    show_default=True,
    help="event_time: as a join on event times would have it.",
)
@click.option("--overwrite", is_flag=True, help="Replace another training set that is in the folder.")
def training_set(
    model: str | None,
    world: Path,
    as_json: bool,
    to: Path,
    rows_a_file: int,
    partition_by: Any,
    as_of: str | None,
    in_world: Any,
    overwrite: bool,
) -> None:
    """Write MODEL's training set (or the only one's) as Parquet files. A run that was stopped goes on where it was."""
    from sameworld.training.world_file import load_world  # noqa: PLC0415
    from sameworld.training.write import write_training_set  # noqa: PLC0415

    loaded = load_world(world)
    chosen = loaded.model(model)
    with show.progress("training set", "moments") as progress:
        written = write_training_set(
            chosen,
            to=to,
            world=in_world,
            as_of=show.instant(as_of, "--as-of") if as_of else None,
            folder=loaded.folder,
            rows_a_file=rows_a_file,
            partition_by=partition_by,
            overwrite=overwrite,
            say=show.say,
            progress=progress,
        )
    known = written.made_of.as_of
    facts: dict[str, Any] = {
        "model": chosen.name,
        "folder": str(written.folder),
        "rows": written.rows,
        "parts": written.parts,
        "kept": written.kept,
        "world": in_world,
        "as_of": None if known is None else show.iso(known),
        "fingerprint": written.made_of.content,
        "seconds": written.seconds,
    }
    if as_json:
        show.json_out(facts)
        return
    kept = f", {written.kept:,} of them kept" if written.kept else ""
    show.out.print(
        f"{written.rows:,} moments in {written.parts:,} parts{kept}; labels as of {facts['as_of']}; {written.seconds:.1f} s"
    )
    show.out.print(f"fingerprint {facts['fingerprint']} in {written.folder}", markup=False)


@main.command()
@click.argument("models", nargs=-1)
@_common
@_registry
@_state
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
def serve(
    models: tuple[str, ...],
    world: Path,
    as_json: bool,
    registry: Path,
    state: Path,
    host: str,
    port: int,
    workers: int,
    drain: float,
    guarded_memory: str,
    replay: bool,
    cutover: str | None,
    durability: Any,
    prediction_durability: Any,
    keep_predictions: str | None,
    keep_predictions_for: str | None,
) -> None:
    """Serve MODELS (all trained ones by default; NAME or NAME=BUNDLE) until interrupted."""
    from sameworld.definitions.durations import microseconds  # noqa: PLC0415
    from sameworld.server.config import ServerConfig  # noqa: PLC0415
    from sameworld.server.run import fill  # noqa: PLC0415
    from sameworld.server.run import serve as run  # noqa: PLC0415
    from sameworld.training.bundle import Registry  # noqa: PLC0415
    from sameworld.training.world_file import load_world  # noqa: PLC0415

    loaded = load_world(world)
    kept = Registry(registry)
    wanted: dict[str, str] = {}
    for given in models or loaded.models:
        name, _, address = given.partition("=")
        wanted[name] = address or kept.newest(name) or ""
    missing = [name for name, address in wanted.items() if not address]
    if missing:
        raise DefinitionError(
            f"No bundle of {', '.join(missing)} is in the registry.",
            where=str(registry),
            do="train first: sameworld train.",
        )
    days = (
        microseconds(keep_predictions_for, of="--keep-predictions-for") / 86_400e6
        if keep_predictions_for
        else None
    )
    config = ServerConfig(
        keep_prediction_bytes=show.size(keep_predictions, of="--keep-predictions") if keep_predictions else None, keep_prediction_days=days, prediction_durability=prediction_durability,
        world=str(loaded.path), registry=str(registry.resolve()), state=str(state.resolve()), models=wanted, replay=replay, durability=durability,
        host=host, port=port, workers=workers, drain_seconds=drain,
        guarded_memory_bytes=show.size(guarded_memory, of="--guarded-memory"), token=os.environ.get("SAMEWORLD_TOKEN"), folder=str(loaded.folder),
    )  # fmt: skip
    config.check()
    fill(config, cutover=show.instant(cutover, "--cutover") if cutover else None, say=show.say)
    show.say(f"serving {', '.join(wanted)} at http://{host}:{port}")
    run(config)


@main.command()
@_common
@_registry
@_state
@_against
@click.option("--show", "listed", default=20, show_default=True, help="How many differences to list.")
def prove(world: Path, as_json: bool, registry: Path, state: Path, against: Any, listed: int) -> None:
    """Recompute every logged vector from the sources and compare it bit by bit. Exit status 1 when something differs."""
    from sameworld.engines.duckdb import DuckDBEngine  # noqa: PLC0415
    from sameworld.evaluation.prove import prove as run  # noqa: PLC0415
    from sameworld.training.bundle import Registry  # noqa: PLC0415
    from sameworld.training.world_file import load_world  # noqa: PLC0415

    loaded = load_world(world)
    proof = run(
        loaded.models,
        Registry(registry),
        state,
        engine=DuckDBEngine(loaded.folder),
        against=against,
        say=show.say,
    )
    if as_json:
        show.json_out(proof.as_json(listed))
    else:
        for difference in proof.differences[:listed]:
            show.out.print(difference.text(), markup=False)
        show.out.print(
            f"{proof.vectors:,} vectors, {proof.values:,} values, {proof.different} different; {proof.without_vector:,} answers had no vector",
            style="green" if not proof.different else "red",
        )
        for cause, count in proof.causes.items():
            show.out.print(f"  {cause}: {count}", markup=False)
    if proof.different:
        sys.exit(1)


@main.command()
@click.argument("model")
@click.argument("feature")
@_common
@click.option(
    "--entity",
    "given",
    multiple=True,
    metavar="KEY=VALUE",
    help="Whose value: one for each key of the feature.",
)
@click.option("--at", required=True, metavar="TIME", help="The moment, ISO 8601 with a zone or Z.")
@click.option(
    "--as-of",
    metavar="TIME",
    help="Rows readable before it count, ISO 8601 with a zone or Z. The moment by default.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="A server's folder: files up to its cutover and the event log after it. The files alone by default.",
)
@click.option(
    "--rows",
    "listed",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="How many rows to list of each standing, the nearest to the moment.",
)
def explain(
    model: str,
    feature: str,
    world: Path,
    as_json: bool,
    given: tuple[str, ...],
    at: str,
    as_of: str | None,
    state: Path | None,
    listed: int,
) -> None:
    """Say of which rows the value of FEATURE of MODEL is made at a moment, why not of the others, and how it changes around it."""
    from sameworld.cli import explained  # noqa: PLC0415
    from sameworld.engines.duckdb import DuckDBEngine  # noqa: PLC0415
    from sameworld.evaluation.explain import explain as run  # noqa: PLC0415
    from sameworld.training.world_file import load_world  # noqa: PLC0415

    moment = show.instant(at, "--at")
    known = show.instant(as_of, "--as-of") if as_of else None
    entity = explained.entity(given)
    loaded = load_world(world)
    explanation = run(
        loaded.model(model),
        feature,
        entity=entity,
        at=moment,
        as_of=known,
        engine=DuckDBEngine(loaded.folder),
        state=state,
        rows=listed,
    )
    if as_json:
        show.json_out(explanation.as_json())
        return
    for line in explained.lines(explanation, max(explained.NARROWEST, min(show.out.width, explained.WIDEST))):
        show.out.print(line.text, style=line.style, markup=False, soft_wrap=True)


@main.command()
@click.argument("model", required=False)
@_common
@_registry
@_state
@click.option("--report", type=click.Path(path_type=Path), help="Write an HTML report there.")
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    help="A bundle whose answers are in the log, trained in any world; the newest of each by default.",
)
@_against
def gap(
    model: str | None,
    world: Path,
    as_json: bool,
    registry: Path,
    state: Path,
    report: Path | None,
    bundles: tuple[str, ...],
    against: Any,
) -> None:
    """Compare what MODEL claims in each world it was trained in with what its logged answers delivered."""
    from sameworld.engines.duckdb import DuckDBEngine  # noqa: PLC0415
    from sameworld.evaluation.gap import measure  # noqa: PLC0415
    from sameworld.evaluation.report import render_gap_report  # noqa: PLC0415
    from sameworld.training.bundle import Registry  # noqa: PLC0415
    from sameworld.training.world_file import functions_of, load_world  # noqa: PLC0415

    loaded = load_world(world)
    kept = Registry(registry)
    chosen = loaded.model(model)
    addresses = list(bundles) or [a for w in ("event_time", "as_of") if (a := kept.newest(chosen.name, w))]
    functions = functions_of(loaded.path)
    loadable = [kept.load(address, functions) for address in addresses]
    engine = DuckDBEngine(loaded.folder)
    measured = measure(chosen, loadable, state, engine=engine, against=against, say=show.say)
    if report:
        report.write_text(render_gap_report(measured.report))
    if as_json:
        show.json_out(measured.as_json())
    else:
        show.out.print(measured.table())
        if report:
            show.out.print(f"report: {report}")


@main.command("log")
@_state
@click.option("--rotate", is_flag=True, help="Make Parquet of all segments that are complete.")
@click.option("--trim", help="Rotate, and keep at most so much Parquet, such as 50GB: the oldest goes first.")
@click.option("--older-than", help="Rotate, and remove Parquet that was written so long ago, such as 90d.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_told
def prediction_log(
    state: Path, rotate: bool, trim: str | None, older_than: str | None, as_json: bool
) -> None:
    """Show what the prediction log holds, by model and version; rotate it to Parquet, and trim that."""
    from sameworld.cli import logged  # noqa: PLC0415
    from sameworld.definitions.durations import microseconds  # noqa: PLC0415
    from sameworld.stores.prediction_contents import contents  # noqa: PLC0415
    from sameworld.stores.rotation import Rotated  # noqa: PLC0415
    from sameworld.stores.rotation import rotate as run  # noqa: PLC0415

    keep_bytes = None if trim is None else show.size(trim, of="--trim")
    keep_days = None if older_than is None else microseconds(older_than, of="--older-than") / 86_400e6
    done: Rotated | None = None
    if rotate or trim is not None or older_than is not None:
        done = run(state, keep_bytes=keep_bytes, keep_days=keep_days)
    held = contents(state)
    if as_json:
        show.json_out(logged.as_json(state, held, done))
    else:
        logged.tell(state, held, done)
    if done is not None and done.stayed:
        sys.exit(1)


def _facts(entry: Entry) -> dict[str, Any]:
    times = {"created": entry.created, "used": entry.used}
    return {
        "kind": entry.kind,
        "key": entry.key,
        "about": entry.about,
        "bytes": entry.bytes,
        **{name: show.iso(int(time) * 1_000_000) for name, time in times.items()},
    }


def _counted(entries: int) -> str:
    return f"{entries:,} {'entry' if entries == 1 else 'entries'}"


@main.command()
@_common
@click.option(
    "--trim", help="Keep at most so much, such as 500MB or 10GB: the least recently used goes first."
)
@click.option("--older-than", help="Remove what was not used for so long, such as 12h or 30d.")
def cache(world: Path, as_json: bool, trim: str | None, older_than: str | None) -> None:
    """Show what is kept of earlier runs, the least recently used first, and trim it. All of it can be computed again."""
    from sameworld.definitions.durations import microseconds  # noqa: PLC0415
    from sameworld.engines.cache import DEFAULT, Cache  # noqa: PLC0415

    limit = None if trim is None else show.size(trim, of="--trim")
    age = None if older_than is None else microseconds(older_than, of="--older-than") / 1e6
    folder = world.resolve().parent / DEFAULT
    kept = Cache(folder)
    try:
        gone = [] if limit is None and age is None else kept.trim(limit, age)
    except OSError as error:
        raise CacheError(
            f"The cache cannot be trimmed: {error.strerror}.",
            where=str(error.filename or folder),
            do="trim it as the user whose files they are.",
        ) from error
    entries = kept.entries()
    total = sum(entry.bytes for entry in entries)
    if as_json:
        show.json_out(
            {
                "folder": str(folder),
                "bytes": total,
                "entries": [_facts(entry) for entry in entries],
                "removed": [_facts(entry) for entry in gone],
            }
        )
        return
    if gone:
        show.out.print(f"removed {_counted(len(gone))}, {show.size_text(sum(entry.bytes for entry in gone))}")
    if not entries:
        show.out.print(f"Nothing is kept in {folder}", markup=False, soft_wrap=True)
        return
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("kind", "what", "size", "created", "last used")
    for entry in entries:
        facts = _facts(entry)
        table.add_row(
            entry.kind, Text(entry.about), show.size_text(entry.bytes), facts["created"], facts["used"]
        )
    show.out.print(table)
    show.out.print(
        f"{_counted(len(entries))}, {show.size_text(total)}, in {folder}", markup=False, soft_wrap=True
    )


@main.command()
@click.argument("name", default="flights")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Where the report goes.",
)
def demo(name: str, out: Path, extra: tuple[str, ...]) -> None:
    """Run the whole story of an example: train, serve, replay, prove, compare, report."""
    for folder in [Path.cwd(), *Path.cwd().parents]:
        script = folder / "examples" / name / "demo.py"
        if script.exists():
            break
    else:
        show.failure(
            DefinitionError(
                f"There is no examples/{name}/demo.py here.", do="run this in a clone of the repository."
            ),
            as_json=False,
        )
        sys.exit(1)
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), str(out), *extra]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SameworldError as error:
        show.failure(error, as_json=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
