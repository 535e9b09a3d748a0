"""`sameworld train --also-served` learns from the log of a server beside the model's own moments."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner
from small_world import SmallWorld

from sameworld.cli.main import main


def trained(world: SmallWorld, *flags: str) -> Any:
    place = ["--world", str(world.file), "--registry", str(world.folder / "registry")]
    until = ["--until", "2024-03-17T12:00:00Z"]
    result = CliRunner().invoke(main, ["train", "plain", *place, *until, *flags, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_what_was_served_is_learnt_from_beside_the_models_own_moments(played: SmallWorld) -> None:
    alone = trained(played)
    both = trained(played, "--also-served", str(played.state))

    assert both["rows"]["fit"] > alone["rows"]["fit"]
    (also,) = played.registry.load(both["bundle"]).description.also
    assert (also["data"]["model"], also["served"]) == ("plain", True)
