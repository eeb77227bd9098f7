"""What the storage of one controller is told when it starts: limits and defaults.

Owns: nothing but the values.
Never: reads a configuration file (daemon.py maps it to this).
"""

from __future__ import annotations

from dataclasses import dataclass

from controllerd.model.write_time import Source
from controllerd.storage.acknowledge import Durability


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """Limits and defaults; sizes in bytes, times in seconds.

    ``owner`` names the controller, for the catalogue: another one's data is not touched.
    ``boot`` names the machine's present run (kernel boot id); "" means not known.
    """

    data_directory: str
    owner: str = ""
    boot: str = ""
    time_source: Source = "clock"
    host_time_ahead_s: float = 3600.0
    cache_bytes: int = 256 << 20
    journal_bytes: int = 1 << 30
    segment_bytes: int = 64 << 20
    tail_bytes: int = 64 << 20
    pending_bytes: int = 64 << 20
    region_bytes: int = 64 << 10
    checkpoint_interval_s: float = 10.0
    destage_age_s: float = 1.0
    max_request_bytes: int = 32 << 20
    durability: Durability = "cache"
    overflow: str = "suspend"
