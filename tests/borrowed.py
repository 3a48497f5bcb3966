"""An app module that imports a dangerous function by name."""

from subprocess import run

__all__ = ["run"]
