"""Prompt ensembles: the templates that open_clip brings."""

from __future__ import annotations

from tasks.model.light_imports import prepare as prepare_imports

PLACE = "{}"


def templates(prompt: str | tuple[str, ...]) -> tuple[str, ...]:
    """The templates that ``prompt`` of an evaluation set stands for, each with `PLACE` for the class name.

    One prompt is one template; a list is itself. ``openai`` and ``simple`` are open_clip's
    ``OPENAI_IMAGENET_TEMPLATES`` and ``SIMPLE_IMAGENET_TEMPLATES`` (CLIP, arXiv 2103.00020, section 3.1.4).
    """
    if not isinstance(prompt, str):
        return prompt
    if PLACE in prompt:
        return (prompt,)
    prepare_imports()
    import open_clip

    ensembles = {"openai": open_clip.OPENAI_IMAGENET_TEMPLATES, "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES}
    return tuple(template(PLACE) for template in ensembles[prompt])
