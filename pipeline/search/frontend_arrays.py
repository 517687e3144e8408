"""Log-mels that candidates hear: which the store lacks, and which of those follow from what it holds.

A log-mel whose hop is a multiple of a stored one's, all else equal, is every ``n``-th frame of it: frame ``k`` is
centred on (or begins at) sample ``k * hop`` of the same padded signal either way. Other mels, windows or ranges
have to be computed from sound: that is stage 1's.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import artifact
from pipeline.config import LogMelConfig
from pipeline.errors import MissingArtifactError
from pipeline.search.toml_text import inline
from pipeline.store.commits import finished_arrays, read_marker
from pipeline.store.location import Place, at
from pipeline.store.reader import StoreReader
from pipeline.store.schema import ArraySpec, frontend_digest, read_meta
from pipeline.store.writer import StoreWriter

EARLIER_MARKER = "artifact.before-derivation.json"


def missing(place: Place, frontends: Sequence[LogMelConfig]) -> list[LogMelConfig]:
    """Return those whose array the store has not, or not whole."""
    finished, meta = finished_arrays(place), read_meta(place)
    there = {spec.digest for spec in meta.arrays if spec.path in finished}
    return [config for config in frontends if frontend_digest(config) not in there]


def provide(place: Place, frontends: Sequence[LogMelConfig], recipe_name: str) -> list[LogMelConfig]:
    """Add to the store what follows from its arrays, and return what was added.

    Raises:
        MissingArtifactError: an array is missing that only stage 1 can make; the message holds the command.
    """
    location = at(place)
    if location.size(artifact.MARKER) is None and location.size(EARLIER_MARKER) is not None:
        # Killed while it derived one: the store is what it was before, and the new array unfinished.
        location.write(artifact.MARKER, location.read(EARLIER_MARKER))
    lacking = missing(place, frontends)
    sources = {frontend_digest(config): _source(place, config) for config in lacking}
    impossible = [config for config in lacking if sources[frontend_digest(config)] is None]
    if impossible:
        changed = [
            inline(config.model_dump(mode="json"), LogMelConfig().model_dump(mode="json"))
            for config in impossible
        ]
        raise MissingArtifactError(
            f"the store has no log-mel for {len(impossible)} of the inputs searched",
            expected=", ".join(f"{c.mels} mels at hop {c.hop_length}" for c in impossible), got=str(place),
            run=f"ossicle embed {recipe_name} --set 'embed.more_frontends=[{', '.join(changed)}]'",
        )  # fmt: skip
    for config in lacking:
        source = sources[frontend_digest(config)]
        assert source is not None
        _derive(place, source, config)
    return lacking


def _source(place: Place, config: LogMelConfig) -> ArraySpec | None:
    """Return the stored array whose every ``n``-th frame is what ``config`` asks for; the nearest hop first."""
    finished = finished_arrays(place)
    wanted = config.model_dump(mode="json", exclude={"hop_length"})
    fitting = []
    for spec in read_meta(place).arrays:
        # 8-bit codes have one scale a row, of all its frames: fewer frames would be coded otherwise.
        if spec.kind != "spectrogram" or spec.path not in finished or spec.dtype != "float16":
            continue
        stored = LogMelConfig.model_validate(spec.config)
        if stored.model_dump(mode="json", exclude={"hop_length"}) != wanted:
            continue
        if config.hop_length % stored.hop_length == 0:
            fitting.append((stored.hop_length, spec))
    return max(fitting, key=lambda one: one[0])[1] if fitting else None


def _derive(place: Place, source: ArraySpec, config: LogMelConfig) -> None:
    stride = config.hop_length // int(source.config["hop_length"])
    mels, frames = source.row_shape
    target = source.model_copy(
        update={
            "digest": frontend_digest(config), "config": config.model_dump(mode="json"),
            "row_shape": (mels, -(-frames // stride)),
        }
    )  # fmt: skip
    location, marker = at(place), read_marker(place)
    # A new array takes the store's marker away until it is whole.
    location.write(EARLIER_MARKER, location.read(artifact.MARKER))
    reader = StoreReader(place, frontend=source.digest)
    meta = reader.meta.model_copy(update={"arrays": (target,)})
    with StoreWriter.create(place, reader.rows, meta) as writer:
        for shard in writer.pending([target.digest]):
            frames_of_source = reader.read_array(source, shard)
            writer.write_shard(shard, {target.path: frames_of_source[:, :, ::stride]})
        writer.finish([target.digest], config=marker.config, inputs=marker.inputs, summary=marker.summary)
    location.remove(EARLIER_MARKER)
