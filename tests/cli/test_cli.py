"""The command line calls the library and prints: for people, and with --json for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from small_world import SmallWorld

from sameworld.cli import show
from sameworld.cli.main import main


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def of(world: SmallWorld, command: str, *more: str) -> Result:
    arguments = [command, "--world", str(world.file), *more]
    if command != "check":
        arguments += ["--registry", str(world.folder / "registry")]
    if command in ("prove", "gap"):
        arguments += ["--state", str(world.state)]
    return run(*arguments)


def facts(result: Result, status: int = 0) -> Any:
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_check_says_what_the_world_declares(trained_world: SmallWorld) -> None:
    model = trained_world.load().model("plain")
    assert facts(of(trained_world, "check", "--json")) == {
        "world": str(trained_world.file),
        "models": {
            "plain": {"content": model.content, "features": 8, "sources": ["orders"], "output": "probability"}
        },
    }
    assert of(trained_world, "check").stdout == (
        f"plain: 8 features of orders; answers a probability; content {model.content}\nNothing is wrong.\n"
    )


def test_train_prints_the_bundle_and_its_score(trained: SmallWorld) -> None:
    told = facts(of(trained, "train", "plain", "--json", "--until", "2024-03-16T00:00:00Z"))
    # The same world until the same time is the same bundle.
    assert told["bundle"] == trained.registry.newest("plain")
    assert told["until"] == "2024-03-16T00:00:00Z"
    assert told["metric"] == "roc_auc"
    assert set(told["scores"]) == {"model", "constant", "rate"}
    low, value, high = (told["scores"]["model"][name] for name in ("low", "value", "high"))
    assert 0.5 < low < value < high <= 1
    assert set(told["rows"]) == {"fit", "calibration", "test", "immature", "unlabelled"}
    keys = {"model", "bundle", "world", "until", "metric", "scores", "rows", "seconds", "execution"}
    assert set(told) == keys
    assert f"bundle {told['bundle']}\n" in of(trained, "train", "--until", "2024-03-16T00:00:00Z").stdout


def test_training_set_writes_parts_and_goes_on_with_them(trained: SmallWorld, tmp_path: Path) -> None:
    command = ["training-set", "--world", str(trained.file), "--to", str(tmp_path / "set")]
    begun = run(*command, "--json", "--rows-a-file", "250", "--as-of", "2024-03-17T00:00:00Z")
    told = facts(begun)
    assert {name: value for name, value in told.items() if name not in ("fingerprint", "seconds")} == {
        "model": "plain",
        "folder": str(tmp_path / "set"),
        "rows": 900,
        "parts": 4,
        "kept": 0,
        "world": "as_of",
        "as_of": "2024-03-17T00:00:00Z",
    }
    assert "900 moments, 8 features of 2 sources (as_of)" in begun.stderr
    assert "training set: 900 of 900 moments" in begun.stderr
    (tmp_path / "set" / "part-000002.parquet").unlink()
    again = run(*command, "plain", "--rows-a-file", "250")
    assert again.stdout.startswith(
        "900 moments in 4 parts, 3 of them kept; labels as of 2024-03-17T00:00:00Z; "
    )
    assert told["fingerprint"] in again.stdout
    refused = facts(run(*command, "--json", "--partition-by", "month"), status=1)
    assert refused["found"] == "rows_a_file 250 -> 1000000; partition_by None -> month"
    assert facts(run(*command, "--json", "--partition-by", "month", "--overwrite"))["parts"] == 1
    assert len(list(tmp_path.glob("set/month=2024-03/part-*"))) == 1


def test_a_line_of_progress_says_how_far_how_fast_and_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(show, "err", Console(file=sys.stdout, width=200))
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    with show.progress("training set", "moments") as progress:
        # 100 were there; what took no time is not how fast it is.
        for seconds, done, total in ((0, 100, 1000), (1, 150, 1000), (10, 600, 1000), (20, 1000, 1000)):
            now[0] = seconds
            progress(done, total)
        progress(1000, 1000)
    assert capsys.readouterr().out.splitlines() == [
        "  training set: 600 of 1,000 moments, 50 a second, 8 s left",
        "  training set: 1,000 of 1,000 moments, 45 a second",
    ]


def test_prove_exits_with_0_when_nothing_differs_and_1_when_something_does(played: SmallWorld) -> None:
    vectors = 2 * len(played.asks().at)
    for against in ("log", "files"):
        told = facts(of(played, "prove", "--json", "--against", against))
        assert (told["vectors"], told["different"]) == (vectors, 0)
    assert of(played, "prove").stdout == (
        f"{vectors} vectors, {vectors // 2 * 19:,} values, 0 different; 0 answers had no vector\n"
    )
    played.edit('where("amount > 50")', 'where("amount > 45.5")')
    told = facts(of(played, "prove", "--json", "--show", "3"), status=1)
    assert told["causes"] == {"definition": told["different"]}
    assert len(told["differences"]) == 3
    assert set(told["differences"][0]) == {
        *("where", "model", "feature", "entity", "t", "cause", "detail", "logged", "recomputed")
    }
    shown = of(played, "prove", "--show", "2")
    assert shown.exit_code == 1
    assert shown.stdout.count("cause: definition") == 2
    assert f"  definition: {told['different']}\n" in shown.stdout


def test_gap_compares_claim_and_delivery(played: SmallWorld) -> None:
    report = played.folder / "report.html"
    told = facts(of(played, "gap", "plain", "--json", "--report", str(report)))
    (world,) = told["worlds"]
    assert (told["model"], told["metric"], world["world"]) == ("plain", "roc_auc", "as_of")
    # Proved to have seen the same, it delivers to the bit what it claims.
    assert world["claimed"] == world["delivered"]
    assert world["tiers"] == {"model": 1.0}
    assert "plain" in report.read_text()


def test_gap_and_prove_need_answers(trained: SmallWorld) -> None:
    assert of(trained, "prove").exit_code == 1
    assert facts(of(trained, "prove", "--json"), status=1) == {
        "error": "ProofError",
        "what": "There is no prediction log.",
        "where": str(trained.state),
        "do": "serve the model first, or give --state.",
    }
    assert (
        facts(of(trained, "gap", "--json"), status=1)["what"] == "None of the bundles has answers in the log."
    )


def test_explain_tells_of_which_rows_a_value_is_made(trained_world: SmallWorld) -> None:
    at = "2024-03-16T00:00:00Z"
    asked = [
        "explain",
        "plain",
        "spent",
        "--entity",
        "user=u1",
        "--at",
        at,
        "--world",
        str(trained_world.file),
    ]
    told = facts(run(*asked, "--json"))
    assert (told["model"], told["feature"], told["entity"], told["at"]) == (
        "plain",
        "spent",
        {"user": "u1"},
        at,
    )
    assert [column["column"] for column in told["columns"]] == ["spent_6h", "spent_2d"]
    for column in told["columns"]:
        assert all(len(rows) <= column["counts"][standing] for standing, rows in column["rows"].items())
        assert column["timeline"]["from"] < at < column["timeline"]["to"]
    shown = run(*asked, "--rows", "1").stdout
    assert max(map(len, shown.splitlines())) <= 100
    assert " ".join(told["columns"][1]["verdict"].split()) in " ".join(shown.split())
    assert shown.count("▲") == 2
    (one,) = facts(run(*asked[:2], "spent_2d", *asked[3:], "--json"))["columns"]
    assert one == told["columns"][1]
    later = facts(run(*asked, "--json", "--as-of", "2024-03-17T02:00:00+02:00"))
    assert later["as_of"] == "2024-03-17T00:00:00Z"
    assert later["columns"][0]["timeline"]["of"] == "what is readable"


def test_explain_reads_what_a_server_read(played_world: SmallWorld) -> None:
    asked = ["explain", "plain", "orders", "--entity", "user=u1", "--at", "2024-03-16T12:00:00Z"]
    asked += ["--world", str(played_world.file), "--json"]
    (files,) = facts(run(*asked))["columns"]
    (served,) = facts(run(*asked, "--state", str(played_world.state)))["columns"]
    # A replay's event log has what the files have, but for what became readable after its end.
    for name in ("value", "event_time_value"):
        assert served[name] == files[name]
    assert served["rows"]["used"] == files["rows"]["used"]


@pytest.mark.parametrize(
    ("changed", "what", "do"),
    [
        ({"--at": "2024-03-16T00:00:00"}, "--at has no zone.", "add Z for UTC, or"),
        ({"--as-of": "soon"}, "--as-of is not a time.", "write the time like that."),
        ({"--entity": "user"}, "--entity 'user' is not KEY=VALUE.", "write for example --entity user=u1."),
        ({"--entity": "usr=u1"}, "'usr' is no key of this feature.", "name the entity by its keys: user."),
        ({"FEATURE": "spend"}, "Model 'plain' has no feature 'spend'.", "correct the name;"),
        ({"MODEL": "plane"}, "There is no model 'plane' in the world.", "name the model."),
        ({"--state": "nowhere"}, "There is no server's folder.", "correct --state, or leave it out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_explain_says_what_to_write(
    trained_world: SmallWorld, changed: dict[str, str], what: str, do: str
) -> None:
    given = {
        "MODEL": "plain", "FEATURE": "spent", "--entity": "user=u1", "--at": "2024-03-16T00:00:00Z"
    } | changed  # fmt: skip
    flags = [text for name, value in given.items() if name.startswith("--") for text in (name, value)]
    command = ["explain", given["MODEL"], given["FEATURE"], *flags, "--world", str(trained_world.file)]
    told = facts(run(*command, "--json"), status=1)
    assert told["what"] == what
    assert told["do"].startswith(do)


def test_an_error_is_on_stderr_for_people(tmp_path: Path) -> None:
    result = run("check", "--world", str(tmp_path / "none.py"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.replace("\n", " ").split("  in: ")[0] == "The world file does not exist. "
    assert "do: give its path with --world." in result.stderr


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("import sameworld as sw\n\nx = 1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("import sameworld as sw\nx = (\n", 2, "SyntaxError: '(' was never closed"),
        ("import sameworld as sw\n\n\nsw.nothing\n", 4, "AttributeError: "),
        ("import nowhere_to_be_found\n", 1, "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ],
)
def test_a_world_file_that_does_not_run_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    told = facts(run("check", "--world", str(file), "--json"), status=1)
    assert told["error"] == "DefinitionError"
    assert told["what"].startswith(f"The world file does not run: {what}")
    assert told["where"] == f"{file}:{line}"
    assert told["do"] == "correct the file; it is ordinary Python."


def test_every_problem_of_a_world_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(
        "import sameworld as sw\n\n"
        'a = sw.Source("a", "a.parquet", event_time="t")\n'
        'b = sw.Source("b b", "b.parquet", event_time="t", available_at="t")\n'
        'c = b.by("k").sum("x", over="3 parsecs")\n'
    )
    told = facts(run("check", "--world", str(file), "--json"), status=1)
    assert told["what"] == "The world bad.py has 3 problems."
    for problem, line in zip(told["problems"], (3, 4, 5), strict=True):
        assert f"{file}:{line}" in problem["where"], problem


def test_a_world_without_a_model_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("")
    assert facts(run("check", "--world", str(file), "--json"), status=1) == {
        "error": "DefinitionError",
        "what": "The world declares no model.",
        "where": str(file),
        "expected": "a module-level sw.Model(...)",
        "do": "add one.",
    }


def test_an_unknown_model_is_answered_with_the_nearest(trained_world: SmallWorld) -> None:
    told = facts(of(trained_world, "train", "plane", "--json"), status=1)
    assert (told["what"], told["expected"]) == ("There is no model 'plane' in the world.", "one of: plain")


def test_serving_what_was_never_trained_is_refused(trained: SmallWorld, tmp_path: Path) -> None:
    command = ["serve", "--world", str(trained.file), "--registry", str(tmp_path), "--json"]
    told = facts(run(*command), status=1)
    assert told["what"] == "No bundle of plain is in the registry."


def test_serving_the_outside_without_a_token_is_refused(
    trained: SmallWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAMEWORLD_TOKEN", raising=False)
    result = of(trained, "serve", "--json", "--host", "0.0.0.0", "--state", str(trained.state))
    assert facts(result, status=1)["error"] == "RequestError"
    assert not trained.state.exists()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["prove", "--help"], ["explain", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom sameworld.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'numba', 'duckdb', 'numpy', 'pyarrow', 'lightgbm', 'sklearn', 'lmdb', 'httptools'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
