"""Bytes on disks: disks and regions, volumes, journals, write cache, destage, checkpoint, catalogue."""
