"""Bertline's data pipeline: text becomes token shards, and shards become rows in one fixed order."""
