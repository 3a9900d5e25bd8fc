"""Attach a compression method to a transformers model by hooks, and take it off again."""

from apet.attach.session import Attachment, attach, attached_to

__all__ = ["Attachment", "attach", "attached_to"]
