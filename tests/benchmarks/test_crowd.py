"""The crowd's measurement says what it measured, and stops where it cannot."""

from __future__ import annotations

import resource
import socket
import threading

import pytest

from benchmarks import crowd
from benchmarks.crowd import Crowd, FilesMissing, Memory, Row, allow, ask, settings, table
from benchmarks.growth.lab import GrowthFailed
from benchmarks.report import Spread
from gateway.schema import decode_toml  # noqa: F401
