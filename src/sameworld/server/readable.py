"""Which bundles can be served of those that are asked for: one that is damaged, missing or at odds with the others keeps none of them from being served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sameworld.definitions.source import Source
from sameworld.errors import BundleError, SameworldError
from sameworld.server.routes import ConflictError
from sameworld.training.bundle import Bundle, Registry


@dataclass(frozen=True)
class Readable:
    """What a registry has of some models.

    Args:
        bundles: route name -> its bundle, as far as it is small. Of a damaged one it is what it says of itself, enough for some of its fallbacks.
        unread: route name -> why there is not even that.
    """

    bundles: dict[str, Bundle]
    unread: dict[str, BundleError]


def readable(registry: str, models: Mapping[str, str]) -> Readable:
    """Read the bundles of models.

    Args:
        models: route name -> address.

    Raises:
        BundleError: models are asked for, and none of them can be read.
    """
    found = Readable({}, {})
    known: dict[str, tuple[Source, Bundle]] = {}
    for name, address in models.items():
        try:
            bundle = read(registry, address)
            check(name, bundle, known)
        except Exception as error:  # noqa: BLE001 # the edge: whatever is the matter with one file, the others are served
            found.unread[name] = unread(address, error)
        else:
            found.bundles[name] = bundle
            known.update(by_name([bundle]))
    if models and not found.bundles:
        first = next(iter(found.unread.values()))
        raise BundleError(
            f"Nothing can be served: no bundle of {', '.join(models)} can be read.",
            where=registry,
            found=first.what,
            do="restore the registry, or train again: sameworld train.",
        )
    return found


def read(registry: str, address: str, *, whole: bool = False) -> Bundle:
    """Read a bundle as far as it is small.

    Args:
        whole: refuse one whose other files are damaged.

    Raises:
        BundleError: it is missing, damaged, or not written by this registry.
    """
    kept = Registry(Path(registry))
    try:
        # Code of its own runs in the guarded process only, which looks for it.
        return kept.load(address, without_code=True, without_estimator=True)
    except BundleError:
        if not whole:
            with contextlib.suppress(BundleError):
                return kept.described(address)
        raise


def unread(address: str, error: Exception) -> BundleError:
    """Give what is told of a bundle that cannot be served."""
    if isinstance(error, BundleError):
        return error
    if isinstance(error, SameworldError):
        return BundleError(
            error.what, where=error.where, expected=error.expected, found=error.found, do=error.do
        )
    return BundleError(
        f"Bundle {address} cannot be read.",
        found=f"{type(error).__name__}: {error}",
        do="correct that; it is tried again and again.",
    )


def by_name(bundles: Iterable[Bundle]) -> dict[str, tuple[Source, Bundle]]:
    """Give the sources of models and of their outcomes by name, each with a model that reads it."""
    return {source.name: (source, bundle) for bundle in bundles for source in _sources_of(bundle)}


def check(name: str, bundle: Bundle, sources: Mapping[str, tuple[Source, Bundle]]) -> None:
    """See whether a model can be served beside others.

    Args:
        sources: the others', by name.

    Raises:
        ConflictError: they know another source of a name, or of another schema.
    """
    for source in _sources_of(bundle):
        known, other = sources.get(source.name, (source, bundle))
        what = ""
        if known.content != source.content:
            what = f"Model {name!r} knows another source {source.name!r} than model {other.model.name!r}."
        elif other.description.schemas[source.content] != bundle.description.schemas[source.content]:
            what = f"Model {name!r} knows another schema of source {source.name!r} than model {other.model.name!r}."
        if what:
            raise ConflictError(
                what,
                where=f"bundle {bundle.address}",
                expected="one definition and one schema of a source in a server",
                do="train the models that read it again and start a server with them; or serve them from two servers.",
            )


def _sources_of(bundle: Bundle) -> list[Source]:
    outcome = bundle.model.label.aggregate.source
    return list({s.content: s for s in (*bundle.model.sources, outcome)}.values())
