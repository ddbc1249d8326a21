"""How much a proof does: seconds by default, as long as it takes with FLUXORA_PROOF=long. Same code, larger numbers."""

from __future__ import annotations

import os
from random import Random

LONG = os.environ.get("FLUXORA_PROOF") == "long"


def chance(default: int) -> Random:
    """A source of chance; its seed (FLUXORA_SEED, else `default`) is printed, so that a failure can be had again."""
    seed = int(os.environ.get("FLUXORA_SEED", default))
    print(f"FLUXORA_SEED={seed}")
    return Random(seed)
