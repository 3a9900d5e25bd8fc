"""The compression methods, by name. One file each."""

from __future__ import annotations

from apet.methods.apet import ApET
from apet.methods.base import Method
from apet.methods.vanilla import Vanilla

METHODS: dict[str, type[Method]] = {method.name: method for method in (Vanilla, ApET)}
