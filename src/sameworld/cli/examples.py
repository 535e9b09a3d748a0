"""The command that runs an example's whole story."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import click

from sameworld.cli import show
from sameworld.errors import DefinitionError, SameworldError


@click.command()
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
