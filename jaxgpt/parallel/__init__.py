"""Devices and processes: sharding, start-up, compiled traffic."""
