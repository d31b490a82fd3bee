"""Bertline's trainer: a recipe becomes a trained, evaluated, exported encoder."""
