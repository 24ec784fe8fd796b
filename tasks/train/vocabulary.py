"""Training only the rows of the token embedding that a step's captions use, to the same result.

A caption's tokens are a sliver of the vocabulary (49,408 rows in CLIP, a third of a step's work for a small model at
32 px). A row that never occurs has a zero gradient and zero moments at every step, so that AdamW does nothing to it
but decay it: by the product of (1 - lr · weight decay) over the steps, which is applied at the end, in one go.
"""

from __future__ import annotations

import torch

NAME = "token_embedding.weight"


class Vocabulary:
    """The tokens in use, while a model's embedding holds their rows alone."""

    def __init__(self, model: torch.nn.Module, tokens: torch.Tensor):
        """Cut the embedding of ``model`` down to the tokens that occur in ``tokens`` (int64, any shape)."""
        self._used = torch.unique(tokens)  # ascending, so that the end-of-text token stays the largest
        self._whole = model.get_parameter(NAME).detach().clone()
        embedding = torch.nn.Embedding(len(self._used), self._whole.shape[1], device=self._whole.device)
        self._rows = embedding.weight = torch.nn.Parameter(self._whole[self._used.to(self._whole.device)])
        model.token_embedding = embedding

    @staticmethod
    def serves(model: torch.nn.Module) -> bool:
        """Whether the model is open_clip's ``CLIP`` with the text feature at the largest token: nothing in it but the
        order of its tokens depends on their ids.
        """
        return hasattr(model, "token_embedding") and getattr(model, "text_pool_type", None) == "argmax"

    def renumber(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids → rows of the embedding as it is now, of the same shape."""
        return torch.searchsorted(self._used, tokens)

    def restore(self, weights: dict[str, torch.Tensor], decay: float) -> None:
        """Give ``weights`` the whole embedding back; the rows that were left out have decayed, if it was trained.

        ``decay`` is the product of all steps' (1 - lr · weight decay).
        """
        rows, whole = weights[NAME], self._whole.clone()
        if self._rows.requires_grad:
            whole = (whole.double() * decay).to(whole.dtype)
        whole[self._used.to(whole.device)] = rows.to(whole)
        weights[NAME] = whole
