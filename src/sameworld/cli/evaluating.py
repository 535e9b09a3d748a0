"""Commands that compare what was served with what the sources say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from sameworld.cli import show
from sameworld.cli.options import against_option, common, engine_option, registry_option, state_option


@click.command()
@common
@registry_option
@state_option
@against_option
@engine_option
@click.option("--show", "listed", default=20, show_default=True, help="How many differences to list.")
def prove(
    world: Path, as_json: bool, registry: Path, state: Path, against: Any, engine: Any, listed: int
) -> None:
    """Recompute every logged vector from the sources and compare it bit by bit. Exit status 1 when something differs."""
    from sameworld.engines.named import opened_engine  # noqa: PLC0415
    from sameworld.evaluation.prove import prove as run  # noqa: PLC0415
    from sameworld.training.bundle import Registry  # noqa: PLC0415
    from sameworld.training.world_file import load_world  # noqa: PLC0415

    loaded = load_world(world)
    with opened_engine(engine, loaded.folder, cache=None, say=show.say) as chosen:
        proof = run(loaded.models, Registry(registry), state, engine=chosen, against=against, say=show.say)
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


@click.command()
@click.argument("model")
@click.argument("feature")
@common
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


@click.command()
@click.argument("model", required=False)
@common
@registry_option
@state_option
@click.option("--report", type=click.Path(path_type=Path), help="Write an HTML report there.")
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    help="A bundle whose answers are in the log, trained in any world; the newest of each by default.",
)
@against_option
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
