"""All planted defects."""

from __future__ import annotations

from typing import Final

from tests.simulation.defects.plant import Defect
from tests.simulation.defects.storage import STORAGE
from tests.simulation.defects.takeover import TAKEOVER
from tests.simulation.defects.transfer import TRANSFER

PARTS: Final[dict[str, tuple[Defect, ...]]] = {"storage": STORAGE, "transfer": TRANSFER, "takeover": TAKEOVER}
DEFECTS: Final[tuple[Defect, ...]] = tuple(defect for part in PARTS.values() for defect in part)
