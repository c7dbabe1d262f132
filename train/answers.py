"""The batches of a stage whose teacher has been asked before: its rows, with what the cache says of them."""

from typing import cast

import numpy as np

from effarch import axes
from effarch.data.batches import Batches
from effarch.data.rows import Rows
from effarch.distill.cache import CachedRows
from effarch.distill.cache_build import open_cache
from effarch.distill.cache_writer import CacheStopped
from effarch.distill.plan import Planned
from effarch.distill.stages import Logits
from effarch.models.lm import LM
from effarch.training.faults import StopSignal
from train.loop import Stopped


def answered(
    place: Planned, batches: Batches, cache_dir: str, teacher: LM, rules: axes.Rules, stop: StopSignal
) -> Batches:
    """The batches of a stage: as they are, or from a cache, which is built, continued or found in ``cache_dir``.

    Args:
      place: the stage. batches: its rows. cache_dir: of the run. teacher: whose answers are kept. rules: of the mesh.
      stop: a signal to save and stop.

    Raises:
      Stopped: a signal came meanwhile; what was written is kept.
      UserError: see :func:`effarch.distill.cache_build.open_cache`.
    """
    stage = place.stage
    if not isinstance(stage, Logits) or stage.cache is None:
        return batches
    members = np.arange(len(batches.rows))
    if stage.cache.rows == "stage":
        members = batches.rows_read(batches.position_after(place.batches_before), stage.steps)
    try:
        cache = open_cache(
            cache_dir,
            teacher,
            cast(Rows, batches.rows),
            stage.cache,
            members=members,
            temperature=stage.loss.temperature,
            rules=rules,
            batch_size=batches.batch_size,
            stopped=lambda: stop.requested,
        )
    except CacheStopped:
        raise Stopped(stop.exit_code) from None
    return Batches(CachedRows(batches.rows, cache), batches.batch_size, batches.seed)
