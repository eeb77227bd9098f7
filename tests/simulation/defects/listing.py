"""All planted defects."""

from __future__ import annotations

from typing import Final

from tests.simulation.defects.plant import Defect
from tests.simulation.defects.storage import STORAGE
from tests.simulation.defects.takeover import TAKEOVER
from tests.simulation.defects.transfer import TRANSFER

DEFECTS: Final[tuple[Defect, ...]] = (*STORAGE, *TRANSFER, *TAKEOVER)
