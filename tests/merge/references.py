"""The formulas once more: all at once, in float64, as the papers write them. Slow, and independent of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Stack = np.ndarray
"""Task vectors (or weights) of all experts, (experts, …) in float64."""


def linear(x: Stack) -> np.ndarray:
    return x.mean(axis=0)


def slerp(x: Stack, t: float = 0.5) -> np.ndarray:
    a, b = x
    cosine = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def karcher(x: Stack, iterations: int = 200) -> np.ndarray:
    norms = np.array([np.linalg.norm(v) for v in x])
    units = [v / n for v, n in zip(x, norms, strict=True)]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(iterations):
        tangent = np.zeros_like(mean)
        for unit in units:
            dot = float(np.clip((unit * mean).sum(), -1, 1))
            angle = math.acos(dot)
            if angle > 1e-7:
                tangent += angle / math.sin(angle) * (unit - dot * mean) / len(x)
        length = np.linalg.norm(tangent)
        if length < 1e-14:
            break
        mean = math.cos(length) * mean + math.sin(length) * tangent / length
        mean /= np.linalg.norm(mean)
    return mean * norms.mean()


def task_arithmetic(tau: Stack, scale: float) -> np.ndarray:
    return scale * tau.sum(axis=0)


def trim(tau: Stack, density: float) -> Stack:
    kept = np.zeros((len(tau), tau[0].size))
    for i, one in enumerate(tau):
        flat = np.abs(one).reshape(-1)
        order = np.argsort(-flat, kind="stable")[: max(1, int(density * flat.size))]
        kept[i, order] = one.reshape(-1)[order]
    return kept.reshape(tau.shape)


def band(tau: Stack, density: float, gamma: float) -> Stack:
    kept = np.zeros((len(tau), tau[0].size))
    for i, one in enumerate(tau):
        flat = np.abs(one).reshape(-1)
        keep = max(1, int(density * flat.size))
        top = min(int(gamma * flat.size), flat.size - keep)
        order = np.argsort(-flat, kind="stable")[top : top + keep]
        kept[i, order] = one.reshape(-1)[order]
    return kept.reshape(tau.shape)


def elect(tau: Stack, scale: float, *, mean: bool = True) -> np.ndarray:
    sign = np.where(tau.sum(axis=0) >= 0, 1.0, -1.0)
    agree = np.sign(tau) == sign
    total = (tau * agree).sum(axis=0)
    return scale * (total / np.maximum(1, agree.sum(axis=0)) if mean else total)


def lines_by_norm(taus: list[dict[str, np.ndarray]], merged: dict[str, np.ndarray]) -> float:
    """LiNeS's alpha over whole models, from the experts' task vectors and the merged one."""

    def length(model: dict[str, np.ndarray]) -> float:
        return sum(float(np.abs(t.astype(np.float64)).sum()) for t in model.values())

    total = {name: sum(t[name].astype(np.float64) for t in taus) for name in merged}
    return length(total) / (len(taus) * length(merged))


def magmax(tau: Stack, scale: float) -> np.ndarray:
    return scale * np.take_along_axis(tau, np.abs(tau).argmax(axis=0)[None], axis=0)[0]


def model_stock(tau: Stack) -> np.ndarray:
    n = len(tau)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    norms = [np.linalg.norm(t) for t in tau]
    c = np.mean([(tau[i] * tau[j]).sum() / (norms[i] * norms[j]) for i, j in pairs])
    r = min(1.0, max(0.0, n * c / (1 + (n - 1) * c))) if c > 0 else 0.0
    return r * tau.mean(axis=0)


def consensus(tau: Stack, lambda_: float, k: int, scale: float) -> np.ndarray:
    total = tau.sum(axis=0)
    masks = np.stack([np.abs(t) >= lambda_ * np.abs(total - t) for t in tau])
    return scale * total * (masks.sum(axis=0) >= k)


def sce(tau: Stack, density: float) -> np.ndarray:
    variance = tau.var(axis=0).reshape(-1)
    k = int(density * np.count_nonzero(variance))
    mask = np.zeros(variance.size, bool)
    mask[np.argsort(-variance, kind="stable")[:k]] = True
    tau = tau * mask.reshape(tau.shape[1:])
    weights = (tau.reshape(len(tau), -1) ** 2).mean(axis=1)
    weights = weights / weights.sum() if weights.sum() else np.full(len(tau), 1 / len(tau))
    sign = np.where(tau.sum(axis=0) >= 0, 1.0, -1.0)
    agree = (np.sign(tau) == sign) * weights.reshape(-1, *[1] * (tau.ndim - 1))
    total = agree.sum(axis=0)
    return (tau * agree).sum(axis=0) / np.where(total == 0, 1, total)


def _norm(x: np.ndarray) -> np.ndarray:
    span = x.max() - x.min()
    return (x - x.min()) / span if span else np.zeros_like(x)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def pcb(tau: Stack, density: float) -> np.ndarray:
    n = len(tau)
    flat = tau.reshape(n, -1)
    beta = np.stack(
        [
            _softmax(n * _norm(flat[i] ** 2)) * sum(_softmax(_norm(flat[i] * flat[j])) for j in range(n))
            for i in range(n)
        ]
    )
    for row in beta:
        row[np.argsort(-row, kind="stable")[max(1, int(density * row.size)) :]] = 0
    total = beta.sum(axis=0)
    return ((beta * flat).sum(axis=0) / np.where(total == 0, 1, total)).reshape(tau.shape[1:])


def _polar(x: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(x, full_matrices=False)
    return u @ v


def tsv(tau: Stack) -> np.ndarray:
    if tau.ndim != 3:
        return tau.mean(axis=0)
    each = max(1, min(tau.shape[1:]) // len(tau))
    parts = [np.linalg.svd(t, full_matrices=False) for t in tau]
    u = _polar(np.concatenate([p[0][:, :each] for p in parts], axis=1))
    v = _polar(np.concatenate([p[2][:each] for p in parts], axis=0))
    return u @ np.diag(np.concatenate([p[1][:each] for p in parts])) @ v


def iso_c(tau: Stack) -> np.ndarray:
    if tau.ndim != 3:
        return tau.mean(axis=0)
    u, s, v = np.linalg.svd(tau.sum(axis=0), full_matrices=False)
    return u @ np.diag(np.full_like(s, s.mean())) @ v


def emr(tau: Stack, scale: float) -> np.ndarray:
    positive = tau.sum(axis=0) > 0
    agreeing = np.where((tau > 0) == positive, np.abs(tau), 0)
    return scale * np.where(positive, 1, -1) * agreeing.max(axis=0)


def wudi(tau: Stack, epsilon: float) -> np.ndarray:
    if tau.ndim != 3:
        return tau.mean(axis=0)
    lengths = [np.square(t).sum() for t in tau]
    moved = sum(t @ t.T @ t / n for t, n in zip(tau, lengths, strict=True))
    gram = sum(t.T @ t / n for t, n in zip(tau, lengths, strict=True))
    return moved @ np.linalg.inv(gram + epsilon * np.eye(len(gram)))


def iso_cts(tau: Stack, common: float) -> np.ndarray:
    if tau.ndim != 3:
        return tau.mean(axis=0)
    n = min(tau.shape[1:])
    each = round((n - int(n * common)) / len(tau))
    shared = n - each * len(tau)
    u, s, v = np.linalg.svd(tau.sum(axis=0), full_matrices=False)
    left, values, right = [u[:, :shared]], [s[:shared]], [v[:shared]]
    for one in tau:
        own_u, own_s, own_v = np.linalg.svd(one - left[0] @ left[0].T @ one, full_matrices=False)
        left.append(own_u[:, :each])
        values.append(own_s[:each])
        right.append(own_v[:each])
    return np.concatenate(values).mean() * _polar(np.concatenate(left, axis=1)) @ _polar(np.concatenate(right))


def dop(tau: Stack) -> np.ndarray:
    """The least squares of both projections, written out over all entries of D."""
    merged = tau[0]
    for t, new in enumerate(tau[1:], 2):
        shares = ((1 - 1 / t, merged), (1 / t, new))
        if tau.ndim != 3:
            merged = sum(a * one for a, one in shares)
            continue
        rows, columns = np.eye(new.shape[0]), np.eye(new.shape[1])
        system = sum(a * (np.kron(one @ one.T, columns) + np.kron(rows, one.T @ one)) for a, one in shares)
        right = sum(2 * a * one @ one.T @ one for a, one in shares)
        merged = np.linalg.lstsq(system, np.asarray(right).reshape(-1), rcond=1e-11)[0].reshape(new.shape)
    return merged


def opcm(taus: list[dict[str, np.ndarray]], alpha: float) -> dict[str, np.ndarray]:
    """Over whole models, with the paper's own scaling of D at every step, and full singular bases."""
    merged = {name: t.astype(np.float64) for name, t in taus[0].items()}
    norms = [_length(taus[0])]
    scale = 1.0
    for tau in taus[1:]:
        norms.append(_length(tau))
        for name, t in tau.items():
            part = t.astype(np.float64)
            if t.ndim == 2:
                u, s, vt = np.linalg.svd(merged[name])
                r = int(np.argmax(np.cumsum(s) / s.sum() > alpha))
                p = u.T @ part @ vt.T
                np.fill_diagonal(p, 0)
                p[:r, :r] = 0
                part = u @ p @ vt
            merged[name] = scale * merged[name] + part
        scale = _length(merged) / float(np.mean(norms))
        merged = {name: d / scale for name, d in merged.items()}
    return merged


def _length(model: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(t.astype(np.float64)).sum()) for t in model.values()))


PER_TENSOR: dict[str, tuple[dict[str, object], Callable[[Stack], np.ndarray]]] = {
    "task_arithmetic": ({"scale": 0.4}, lambda t: task_arithmetic(t, 0.4)),
    "ties": ({"density": 0.3, "scale": 0.7}, lambda t: elect(trim(t, 0.3), 0.7)),
    "breadcrumbs": ({"density": 0.6, "gamma": 0.1, "scale": 0.5}, lambda t: 0.5 * band(t, 0.6, 0.1).sum(axis=0)),
    "breadcrumbs_ties": ({"density": 0.6, "gamma": 0.1}, lambda t: elect(band(t, 0.6, 0.1), 1.0)),
    "magmax": ({"scale": 0.5}, lambda t: magmax(t, 0.5)),
    "model_stock": ({}, model_stock),
    "consensus": ({"scale": 0.5}, lambda t: consensus(t, 0.4, 2, 0.5)),
    "sce": ({"density": 0.4}, lambda t: sce(t, 0.4)),
    "pcb": ({"scope": "tensor"}, lambda t: pcb(t, 0.2)),
    "tsv": ({}, tsv),
    "iso_c": ({}, iso_c),
    "iso_cts": ({"common": 0.5}, lambda t: iso_cts(t, 0.5)),
    "emr": ({"scale": 0.5}, lambda t: emr(t, 0.5)),
    "wudi": ({"epsilon": 1e-3}, lambda t: wudi(t, 1e-3)),
    "dop": ({}, dop),
}
"""Techniques whose reference takes one tensor's task vectors: settings, and the merged task vector."""

WEIGHTS: dict[str, Callable[[Stack], np.ndarray]] = {"linear": linear, "karcher": karcher}
"""The same for techniques on raw weights."""
