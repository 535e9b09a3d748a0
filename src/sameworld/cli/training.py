"""Commands that read a world and train its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sameworld.cli import show
from sameworld.cli.options import common, in_world_option, registry_option
from sameworld.errors import Problems


@click.command()
@common
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


@click.command()
@click.argument("model", required=False)
@common
@registry_option
@click.option(
    "--until",
    help="The time of training, ISO 8601; what was asked after it is for the score. By default 85 % of the moments come before.",
)
@click.option(
    "--also-served",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    multiple=True,
    metavar="STATE",
    help="Learn also from what was served, as it was served, out of this state folder. The model's own moments should end where its log begins.",
)
@in_world_option
def train(
    model: str | None,
    world: Path,
    as_json: bool,
    registry: Path,
    until: str | None,
    also_served: tuple[Path, ...],
    in_world: Any,
) -> None:
    """Train MODEL (or the world's only one) and save its bundle."""
    from sameworld.definitions.moments import Moments  # noqa: PLC0415
    from sameworld.training.fit import ALSO  # noqa: PLC0415
    from sameworld.training.fit import train as train_model  # noqa: PLC0415
    from sameworld.training.world_file import load_world  # noqa: PLC0415

    loaded = load_world(world)
    chosen = loaded.model(model)
    also = [Moments.from_log(chosen, state=state.resolve(), features="served") for state in also_served]
    trained = train_model(
        chosen,
        also=also,
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
            if name not in ALSO
        },
        "execution": trained.bundle.execution,
        "rows": trained.rows,
        "seconds": trained.seconds,
    }
    also = {name: trained.scores[name].value for name in ALSO if name in trained.scores}
    if trained.bundle.model.ranking is not None:
        facts["also"] = also
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
    if "also" in facts:
        show.out.print(f"model: {', '.join(f'{name} {value:.4f}' for name, value in also.items())}")
    rows = trained.rows
    show.out.print(
        f"learnt from {rows['fit']:,}, calibrated on {rows['calibration']:,}; left out: {rows['immature']:,} not mature yet, {rows['unlabelled']:,} without a label"
    )
    show.out.print(f"answers by: {facts['execution']}", markup=False)
    show.out.print(f"seconds: {', '.join(f'{name} {value:.1f}' for name, value in trained.seconds.items())}")
    show.out.print(f"bundle {facts['bundle']}")


@click.command("training-set")
@click.argument("model", required=False)
@common
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
@in_world_option
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
