"""What the names and dtypes of a checkpoint's tensors tell about it. Needs neither torch nor open_clip."""

from __future__ import annotations

from tasks.model.dialects.recognise import adapter, naming, quantised

__all__ = ["adapter", "naming", "quantised"]
