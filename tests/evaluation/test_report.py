"""The gap report page, from made-up numbers: what it says, what it leaves out, and that it stands alone."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sameworld.errors import DataError
from sameworld.evaluation.charts import Bin, Pair, histogram, score_lines, span_of
from sameworld.evaluation.report import (
    Baseline,
    CalibrationBin,
    GapReportData,
    LatencyBin,
    LatencySummary,
    LeakedFeature,
    MonthScore,
    ProofSummary,
    Stage,
    WorldScore,
    headline,
    render_gap_report,
)


def world(name: str, claimed: float, delivered: float, missing: str = "") -> WorldScore:
    wobble = [0.004, -0.009, 0.006, 0.011, -0.004, 0.002]
    months = [f"2031-{number:02d}" for number in range(7, 13)]
    predicted = [0.04, 0.11, 0.18, 0.26, 0.34, 0.43, 0.52, 0.61, 0.72]
    return WorldScore(
        world=name,
        claimed=claimed,
        claimed_interval=(claimed - 0.004, claimed + 0.004),
        delivered=delivered,
        delivered_interval=(delivered - 0.005, delivered + 0.005),
        by_month=[
            MonthScore(
                month, 20_000 + 731 * at, claimed + up, None if month == missing else delivered + up * 1.4
            )
            for at, (month, up) in enumerate(zip(months, wobble, strict=True))
        ],
        calibration=[
            CalibrationBin(
                rate,
                rate ** (1.0 + 4 * (claimed - delivered)) * 0.98 + 0.01,
                int(30_000 * math.exp(-5 * rate)),
            )
            for rate in predicted
        ],
        tiers={"model": 0.9921, "rate": 0.0074, "constant": 0.0005},
    )


@pytest.fixture
def made_up() -> GapReportData:
    """Numbers invented for this test; no data set has them."""
    return GapReportData(
        model="late_parcels",
        metric="AUC",
        moments=120_345,
        positives_rate=0.2346,
        period="July to December 2031",
        worlds=[world("event_time", 0.777, 0.726), world("as_of", 0.754, 0.754)],
        baselines=[Baseline("rate by depot", 0.612, (0.606, 0.618)), Baseline("constant", 0.5)],
        leaks=[
            LeakedFeature("depot.late_share_3h", 0.834, 2.31, 5.2, 0.214),
            LeakedFeature("depot.parcels_3h", 0.779, 1.9, 4.8, 0.088),
            LeakedFeature("carrier.mean_delay_1d", 0.61, 0.7, 3.4, 0.131),
            LeakedFeature("van.last_delay", 0.203, 4.4, 61.0, 0.172),
            LeakedFeature("weather.wind_last", 0.0004, None, None, None),
        ],
        latency=LatencySummary(
            requests=120_345,
            non_200=0,
            p50_ms=1.42,
            p99_ms=6.8,
            max_ms=41.3,
            histogram=[
                LatencyBin(upper, count)
                for upper, count in zip(
                    [0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, math.inf],
                    [900, 21_000, 47_000, 28_000, 14_000, 5_100, 2_700, 1_100, 420, 110, 15],
                    strict=True,
                )
            ],
        ),
        proof=ProofSummary(vectors=120_345, values=2_527_245, different=0),
        stages=[
            Stage("lay out tables", 3.1, "four tables"),
            Stage("training sets", 8.42, "two worlds, 21 features"),
            Stage("fit", 14.7),
            Stage("serve", 131.0, "120,345 requests, one at a time"),
            Stage("prove", 5.9),
        ],
        rows=1_036_443,
        bytes=18_734_112,
        note="Made-up numbers",
    )


class Outline(HTMLParser):
    """Collects what a page would fetch or run, its text, and whether its tags are closed."""

    void = frozenset(
        {"meta", "link", "img", "br", "hr", "input", "circle", "line", "rect", "path", "polygon"}
    )

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.reaches: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.reaches += [
            f"{tag} {name}" for name, _ in attrs if name in {"src", "href", "srcset", "xlink:href"}
        ]
        self.reaches += [tag] if tag in {"script", "link", "iframe", "object"} else []
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data.strip())


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_the_headline_says_what_was_promised_and_what_came(made_up: GapReportData) -> None:
    text = Outline(render_gap_report(made_up)).text

    assert "event_time promised 0.777 , production delivered 0.726 : 0.051 was a leak." in text
    assert "as_of promised 0.754 and delivered 0.754 ." in text
    assert "a promise of 0.051 that production cannot keep, and 0.028 that as_of delivers" in text


def test_the_page_stands_alone_and_its_tags_are_closed(made_up: GapReportData) -> None:
    page = render_gap_report(made_up)
    outline = Outline(page)

    assert outline.reaches == []
    assert outline.open == []
    assert "url(" not in page
    assert "@import" not in page
    assert "nan" not in re.findall(r"[\w.]+", page)


def test_every_part_with_data_appears(made_up: GapReportData) -> None:
    page = render_gap_report(made_up)

    assert headings(page) == [
        "What was promised, what was delivered",
        "Month by month",
        "The features that leaked most",
        "Do the delivered predictions mean what they say?",
        "Serving",
        "Proof",
        "Cost",
    ]
    text = Outline(page).text
    for said in (
        "Made-up numbers",
        "AUC over 120,345 moments, 23% positive · July to December 2031",
        "depot.late_share_3h 83% 21% 2.3 h 5.2 h",
        "weather.wind_last 0.04% – – –",
        "120,345 requests, every one answered with 200.",
        "0 of 2,527,245 values differ.",
        "model 99.2%",
        "2 min 11 s",
        "18.7 MB",
    ):
        assert said in text


def test_a_part_without_data_leaves_no_box() -> None:
    bare = GapReportData("m", "AUC", 10, [WorldScore("as_of", 0.7, 0.7)])

    page = render_gap_report(bare)

    assert headings(page) == ["What was promised, what was delivered"]
    assert "None" not in page


def test_a_value_that_differs_is_shown_with_its_causes(made_up: GapReportData) -> None:
    proof = ProofSummary(vectors=10, values=210, different=3, causes={"late row": 2, "correction": 1})

    page = render_gap_report(replace(made_up, proof=proof))

    assert "3 of 210 values differ." in page
    assert 'class="verdict wrong"' in page
    assert "late row 2 correction 1" in Outline(page).text


def test_names_from_the_data_are_escaped() -> None:
    hostile = '<script>"&'
    gap = GapReportData(
        hostile,
        hostile,
        10,
        [replace(world("as_of", 0.7, 0.6), world=hostile, tiers={hostile: 1.0})],
        baselines=[Baseline(hostile, 0.5)],
        leaks=[LeakedFeature(hostile, 0.5)],
        stages=[Stage(hostile, 1.0, hostile)],
        proof=ProofSummary(1, 1, 1, {hostile: 1}),
    )

    assert Outline(render_gap_report(gap)).reaches == []


def test_a_small_difference_is_kept_and_a_sure_one_is_a_leak() -> None:
    def text(**more: object) -> str:
        score = replace(WorldScore("as_of", 0.7541, 0.7519), **more)  # type: ignore[arg-type]
        return headline(GapReportData("m", "AUC", 10, [score])).text()

    assert text() == "as_of promised 0.754 and delivered 0.752."
    assert text(gap_interval=(-0.001, 0.005)) == "as_of promised 0.754 and delivered 0.752."
    assert text(gap_interval=(0.001, 0.003)) == (
        "as_of promised 0.754, production delivered 0.752: 0.002 was a leak."
    )


def test_of_a_loss_the_lower_is_better() -> None:
    worlds = [WorldScore("as_of", 0.41, 0.41), WorldScore("event_time", 0.35, 0.46)]

    said = headline(GapReportData("m", "log loss", 10, worlds, higher_is_better=False))

    assert said.text() == (
        "event_time promised 0.350, production delivered 0.460: 0.110 was a leak. "
        "as_of promised 0.410 and delivered 0.410."
    )
    assert said.missed == pytest.approx(0.05)


def test_worlds_must_be_there_and_told_apart() -> None:
    with pytest.raises(DataError) as caught:
        GapReportData(
            "late_parcels", "AUC", 10, [WorldScore("as_of", 0.7, 0.7), WorldScore("as_of", 0.6, 0.6)]
        )

    assert str(caught.value) == (
        "The gap report of model 'late_parcels' cannot tell its worlds apart.\n"
        "  expected: at least one world, each with a name of its own\n"
        "  found: as_of, as_of\n"
        "  do: pass one WorldScore for each way of building the training set."
    )


def test_a_month_without_a_score_breaks_the_line() -> None:
    pairs = [Pair("Jan", 0.7, 0.7), Pair("Feb", 0.7, None), Pair("Mar", 0.7, 0.7)]

    drawing = score_lines(span_of([0.7]), pairs, title="t")

    (delivered,) = re.findall(r'class="delivered line" d="([^"]*)"', drawing)
    assert [step[0] for step in re.findall(r"[ML][^ML]*", delivered)] == ["M", "M"]
    assert "polygon" not in drawing


def test_a_mark_lies_inside_its_bin() -> None:
    drawing = histogram([Bin(1.0, 5), Bin(3.0, 5)], [("p50", 2.0)], unit="ms", title="t")

    # Two bins share 452 px from 14 on; 2.0 is in the middle of the second.
    assert re.findall(r'class="mark" x1="([\d.]+)"', drawing) == ["353.0"]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.53, 0.78], (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)),
        ([3.0, 3.0], (2.8, 2.9, 3.0, 3.1, 3.2)),
        ([None, math.inf], (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ([0.0], (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)),
    ],
)
def test_a_span_is_made_of_round_numbers(values: list[float | None], ticks: tuple[float, ...]) -> None:
    assert span_of(values).ticks == pytest.approx(ticks)
