"""Tests of the storage layer, module by module."""
