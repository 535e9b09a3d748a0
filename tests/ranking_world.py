"""A small world of a shop that ranks items: what was shown, what was clicked, models that learn from both, and a server they are replayed through."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from small_world import DAY, END, HOUR, START, UNTIL, SmallWorld, instants, serving

from sameworld.asof.schema import supported
from sameworld.server.replay import Feed, Played, replay
from sameworld.training.world_file import load_world

MINUTE = HOUR // 60
ITEMS = [f"i{number}" for number in range(12)]

RANKING_WORLD = '''"""Which item will be clicked?"""

from lightgbm import LGBMClassifier, LGBMRanker

import sameworld as sw

clicks = sw.Source("clicks", "data/clicks.parquet", event_time="clicked_at", available_at="seen_at")
shown = sw.Moments("data/shown.parquet", at="shown_at")


def dear(price, clicks):
    return price / (clicks + 1.0)


def cheapest(price):
    return -price


features = {
    "item_clicks": clicks.by("item_id").count(over=["6h", "3d"]),
    "user_clicks": clicks.by("user").count(over="3d"),
    "again": clicks.by("user", "item_id").count(over="3d"),
    "item": sw.field("item_id").category(),
    "price": sw.field("price"),
}
clicked = sw.Label(clicks.by("request_id", "item_id").count() > 0, within="1h", otherwise=False, settles="30m")
ranking = sw.Ranking("items", key="item_id", request="request_id", fields=["price"], most=20)
popular = sw.Popular(clicks.by("item_id").count(over="7d"), by="country", top=8)
options = {"moments": shown, "label": clicked, "ranking": ranking, "service": sw.Service(deadline="20s")}

ranker = sw.Model(
    "ranker", features=features, estimator=LGBMRanker(n_estimators=10, min_child_samples=5, n_jobs=1),
    fallbacks=[sw.Without(clicks), popular], **options,
)
'''

POINTWISE = """
pointwise = sw.Model(
    "pointwise", features=features | {"dear": sw.derive(dear, "price", "item_clicks_3d")},
    estimator=LGBMClassifier(n_estimators=10, min_child_samples=5, n_jobs=1),
    fallbacks=[sw.Rule(cheapest, "price"), sw.Rate(by="item_id")], **options,
)
"""


def write_ranking_data(folder: Path) -> None:
    """Write 500 requests of 1 to 8 candidates, and the clicks: a third of the requests end in one, others come from nowhere."""
    random = np.random.default_rng(11)
    folder.mkdir(parents=True, exist_ok=True)
    liked = random.normal(0, 1.5, len(ITEMS))
    at = np.sort(random.integers(START + DAY, END, 500))
    rows: dict[str, list[Any]] = {
        name: [] for name in ("shown_at", "request_id", "user", "country", "item_id", "price")
    }
    clicks: list[tuple[int, int, str | None, str, str, str]] = []
    for number, t in enumerate(at.tolist()):
        user, country = f"u{random.integers(0, 8)}", ("de", "fr")[int(random.integers(0, 2))]
        items = random.choice(len(ITEMS), random.integers(1, 9), replace=False)
        prices = np.round(random.lognormal(2, 0.5, items.size), 2)
        draw = random.random(items.size) < 0.3 / (1 + np.exp(0.1 * prices - liked[items]))
        for item, price, is_clicked in zip(items.tolist(), prices.tolist(), draw.tolist(), strict=True):
            values = (t, f"r{number}", user, country, ITEMS[item], price)
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
            if is_clicked:
                when = t + int(random.integers(1, 50 * MINUTE))
                late = int(random.integers(1, 20 * MINUTE))
                clicks.append((when, when + late, f"r{number}", user, country, ITEMS[item]))
    for when in random.integers(START, END, 600).tolist():
        item = int(random.choice(len(ITEMS), p=np.exp(liked) / np.exp(liked).sum()))
        user, country = f"u{random.integers(0, 8)}", ("de", "fr", "it")[int(random.integers(0, 3))]
        clicks.append((when, when + int(random.integers(1, HOUR)), None, user, country, ITEMS[item]))
    shown = {**rows, "shown_at": instants(rows["shown_at"])}
    pq.write_table(pa.table(shown), folder / "shown.parquet")
    clicked_at, seen_at, request, user, country, item = zip(*sorted(clicks, key=lambda c: c[:2]), strict=True)
    pq.write_table(
        pa.table(
            {
                "clicked_at": instants(clicked_at), "seen_at": instants(seen_at), "request_id": pa.array(request, pa.string()),
                "user": user, "country": country, "item_id": item,
            }
        ),
        folder / "clicks.parquet",
    )  # fmt: skip


def make_ranking(folder: Path, text: str = RANKING_WORLD) -> SmallWorld:
    """Lay the world out and train its models."""
    write_ranking_data(folder / "data")
    (folder / "world.py").write_text(text)
    world = SmallWorld(folder, tuple(load_world(folder / "world.py").models))
    world.train()
    return world


def play(world: SmallWorld, models: Sequence[str] | None = None) -> Played:
    """Replay the days after the training through a server in this process."""
    model = next(iter(world.load().models.values()))
    source, engine = model.sources[0], world.engine()
    schema = supported(engine.describe(source.data, source.name))
    feeds = [Feed(source, *engine.event_json(source, schema, UNTIL, END))]

    async def played() -> Played:
        async with serving(world.config(replay=True), cutover=UNTIL) as client:
            asks = world.asks()
            return await replay(client, models or world.models, asks, feeds, ranking=model.ranking)  # type: ignore[arg-type] # speaks like a Client

    return asyncio.run(played())
