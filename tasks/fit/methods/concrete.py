"""One mask for all task vectors, learned by the entropy of what the merged model predicts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from tasks import randomness
from tasks.fit.landscape import TEMPERATURE, Landscape
from tasks.fit.learning import SCORED, Course, LearnsByEntropy, means_of
from tasks.fit.method import Problem
from tasks.merge import FitResult
from tasks.model import checkpoints

SOFTNESS = 0.5
"""The temperature of the relaxed Bernoulli distribution."""
FILE = "masked.safetensors"


class Concrete(LearnsByEntropy):
    """θ_0 + m̂ ∘ Σ λ_k τ_k with one mask for all experts, m̂ = m / mean(m) per tensor; λ as the technique has it.

    While it learns, m = σ((log(u/(1−u)) + x)/0.5) with u drawn for each entry anew; what is deployed is the median
    mask, u = ½. x is learned by Adam on the entropy of the arrivals' samples, unlabelled, and is that with the least
    entropy on held-out samples.
    """

    name: ClassVar[str] = "concrete"
    source: ClassVar[str] = "Tang et al. 2023, Concrete subspace learning (arXiv 2312.06173)"

    def fit(self, problem: Problem) -> tuple[FitResult, dict[str, Any]]:
        empty = problem.samples.require_held()
        vectors, start = self.vectors(problem, problem.files()), self.start(problem)
        weights = np.repeat(np.array(start)[:, None], len(vectors.names), axis=1)
        landscape = Landscape(problem, vectors, problem.samples.arrivals, "entropy")
        base = checkpoints.load(problem.base)
        sums = {name: vectors.sum_of(name, weights[:, i]) for i, name in enumerate(vectors.names)}
        best, course = self._descend(problem, landscape, base, sums)

        masked = dict(base)
        for name, total in sums.items():
            mask = normalized(median(best[name])) if name in best else 1.0
            masked[name] = (base[name].double() + mask * total).to(base[name].dtype)
        out = problem.project / problem.out / FILE
        checkpoints.save(out, masked)
        scorer = self.scorer(problem)
        scores = {"end": means_of(scorer.score(out))}
        result = FitResult(
            technique="task_arithmetic", settings={"scale": 1.0}, models=(str(problem.out / FILE),), weights=(1.0,)
        )
        named = [name for name, _ in problem.models]
        report = {
            "weights": dict(zip(named, start, strict=True)), "course": course, "scores": scores,
            "samples": scorer.sizes, "without_samples": empty,
        }  # fmt: skip
        return result, report

    def _descend(
        self, problem: Problem, landscape: Landscape, base: dict[str, torch.Tensor], sums: dict[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], Course]:
        """The logits of the mask by tensor, and the entropies at each look."""
        parameters = dict(problem.model.named_parameters())
        logits = {name: torch.zeros(total.shape) for name, total in sums.items() if name not in TEMPERATURE}
        adam = torch.optim.Adam(list(logits.values()), lr=self.lr)

        def place(masks: dict[str, torch.Tensor]) -> None:
            with torch.no_grad():
                for name, total in sums.items():
                    mask = normalized(masks[name]) if name in masks else 1.0
                    parameters[name].copy_(base[name].double() + mask * total)

        def held_out() -> float:
            place({name: median(x) for name, x in logits.items()})
            return landscape.held_out_as_it_is(SCORED)

        def step(number: int) -> float:
            masks = {name: drawn(x, problem.seed, name, number) for name, x in logits.items()}
            place(masks)
            entropy = landscape.gradient_as_it_is(number, self.batch_size)
            for name, x in logits.items():
                gradient = parameters[name].grad
                x.grad = torch.zeros_like(x) if gradient is None else by_logits(gradient, sums[name], masks[name])
            adam.step()
            return entropy

        result = self.descend(problem, step, held_out, lambda: {name: x.clone() for name, x in logits.items()})
        problem.model.zero_grad(set_to_none=True)
        return result


def relaxed(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """σ((log(u/(1−u)) + x)/0.5)."""
    return torch.sigmoid((torch.logit(uniform.double()) + logits) / SOFTNESS)


def median(logits: torch.Tensor) -> torch.Tensor:
    """The mask at u = ½."""
    return torch.sigmoid(logits.double() / SOFTNESS)


def normalized(mask: torch.Tensor) -> torch.Tensor:
    """m / mean(m)."""
    return mask / mask.mean()


def drawn(logits: torch.Tensor, seed: int, name: str, number: int) -> torch.Tensor:
    """A mask with u drawn for each entry: a function of seed, tensor and iteration."""
    draws = randomness.generator(seed, "fit", "mask", name, number).random(tuple(logits.shape))
    return relaxed(logits, torch.from_numpy(np.clip(draws, 1e-12, 1 - 1e-12)))


def by_logits(gradient: torch.Tensor, total: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """∂L/∂x from ∂L/∂θ, where θ = θ_0 + m/mean(m) ∘ total and m = `relaxed`: without autograd through the merge."""
    each = gradient.cpu().double() * total
    mean = mask.mean()
    by_mask = each / mean - (each * mask).sum() / (mask.numel() * mean**2)
    return (by_mask * mask * (1 - mask) / SOFTNESS).float()
