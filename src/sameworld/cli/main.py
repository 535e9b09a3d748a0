"""The command line. Heavy libraries load in the command that needs them: `sameworld --help` compiles nothing."""

from __future__ import annotations

import click

from sameworld import __version__
from sameworld.cli.evaluating import explain, gap, prove
from sameworld.cli.examples import demo
from sameworld.cli.keeping import cache, prediction_log
from sameworld.cli.serving import models, serve, status
from sameworld.cli.training import check, train, training_set


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sameworld")
def main() -> None:
    """Train a model and serve it in the same world, provably."""


for command in (
    check,
    train,
    training_set,
    serve,
    models,
    status,
    prove,
    explain,
    gap,
    prediction_log,
    cache,
    demo,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
