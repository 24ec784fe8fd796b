"""Heads against cases worked by hand, the authors' formulas in float64, and scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from tasks.choice import available
from tasks.errors import UserError
from tasks.evaluate.head import Head, SupportHead, Text, chosen, fit
from tasks.evaluate.heads.gda import inverse_covariance, natural_weight
from tasks.evaluate.heads.knn import herded
from tasks.evaluate.heads.linear import regression
from tasks.evaluate.support import Moments, Support, minus, moments
from tasks.params import LabelledHead


def support(features: Any, labels: Any, classes: int | None = None) -> Support:
    found = torch.as_tensor(labels)
    names = tuple(f"c{i:02}" for i in range(classes or int(found.max()) + 1))
    return Support(names, torch.as_tensor(features, dtype=torch.float32), found, torch.arange(len(found)))


def drawn(count: int = 60, width: int = 12, classes: int = 5, seed: int = 0) -> tuple[Support, Text, np.ndarray]:
    """Support, text and queries: unit vectors around one direction for each class."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, width))
    labels = np.sort(np.arange(count) % classes)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    features = unit(centres[labels] + random.normal(size=(count, width)))
    text = torch.as_tensor(unit(centres + 0.5 * random.normal(size=centres.shape)), dtype=torch.float32)
    return support(features, labels), Text(text, 100.0), unit(random.normal(size=(40, width)))


def head(name: str, **settings: Any) -> SupportHead:
    found = chosen(LabelledHead(name=name, **settings))
    assert isinstance(found, SupportHead)
    return found


NO_TEXT = Text(torch.zeros(2, 2), 100.0)


def test_the_registry_has_the_six_heads() -> None:
    assert list(available(Head)) == ["gda", "knn", "linear", "prototype", "tip", "zeroshot"]


def test_prototype_takes_the_class_with_the_nearest_mean() -> None:
    sums = Moments(("a", "b"), torch.tensor([1, 2]), torch.tensor([[2.0, 0], [0, 2]]).double(), torch.eye(2).double())
    logits = fit(head("prototype"), sums, NO_TEXT).classifier.logits(torch.tensor([[1.0, 0.4]]))
    assert logits.argmax() == 0
    assert logits[0].tolist() == [1.0, pytest.approx(0.4)]


def test_prototype_is_the_nearest_centroid_on_unit_vectors() -> None:
    data, text, queries = drawn()
    ours = fit(head("prototype", shots=[12]), data, text).classifier.logits(torch.tensor(queries)).argmax(dim=1)
    means = data.moments().sums / data.counts()[:, None]
    unit = torch.nn.functional.normalize(means, dim=1).numpy()
    theirs = KNeighborsClassifier(1).fit(unit, np.arange(5)).predict(queries)
    assert ours.tolist() == theirs.tolist()


def test_gda_is_the_authors_formula_on_single_features() -> None:
    data, text, queries = drawn()
    f, y = data.features.double(), data.labels
    means = torch.stack([f[y == c].mean(dim=0) for c in range(5)])
    centred = torch.cat([f[y == c] - means[c] for c in range(5)])
    covariance = centred.T.cov()
    inverse = 12 * torch.linalg.pinv((60 - 1) * covariance + covariance.trace() * torch.eye(12).double())
    w = means @ inverse
    b = math.log(1 / 5) - (means @ inverse * means).sum(dim=1) / 2
    x = torch.tensor(queries)
    expected = 100 * x @ text.features.double().T + 0.3 * (x @ w.T + b)
    ours = fit(head("gda", alpha=0.3, shots=[12]), data, text).classifier.logits(x)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_gda_from_moments_of_all_is_gda_from_their_samples() -> None:
    data, text, queries = drawn()
    x = torch.tensor(queries)
    few = fit(head("gda", shots=[12]), data, text).classifier.logits(x)
    torch.testing.assert_close(fit(head("gda"), data.moments(), text).classifier.logits(x), few, rtol=0, atol=0)


def test_gda_auto_weighs_gaussians_of_the_shrunk_covariance_as_logarithms_of_densities() -> None:
    data, text, queries = drawn(count=50)
    f, y = data.features.double(), data.labels
    means = torch.stack([f[y == c].mean(dim=0) for c in range(5)])
    covariance = (f - means[y]).T @ (f - means[y]) / (50 - 5)
    share = 12 / (50 - 1 + 12)
    shrunk = (1 - share) * covariance + share * covariance.trace() / 12 * torch.eye(12).double()
    density = np.stack([multivariate_normal.logpdf(queries, mean, shrunk) for mean in means], axis=1)
    expected = 100 * queries @ text.features.double().numpy().T + density
    fitted = fit(head("gda"), data.moments(), text)
    assert getattr(fitted.head, "alpha") == natural_weight(50, 5, 12)  # noqa: B009 - a setting of this head
    ours = fitted.classifier.logits(torch.tensor(queries)).numpy()
    np.testing.assert_allclose(ours - ours[:, :1], expected - expected[:, :1], rtol=1e-9, atol=1e-9)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share).fit(f.numpy(), y.numpy())  # covariance with n
    theirs = lda.decision_function(queries) * (50 - 5) / 50
    bare = (
        fit(head("gda"), data.moments(), Text(torch.zeros(5, 12), 100.0))
        .classifier.logits(torch.tensor(queries))
        .numpy()
    )
    np.testing.assert_allclose(bare - bare[:, :1], theirs - theirs[:, :1], rtol=1e-6, atol=1e-6)


def test_gda_searches_from_auto_and_says_a_number() -> None:
    data, _, _ = drawn()
    found = fit(head("gda", alpha="search", shots=[12]), data, Text(torch.zeros(5, 12), 100.0))
    assert getattr(found.head, "alpha") == natural_weight(60, 5, 12)  # noqa: B009 - the first of equally good values


def test_gda_without_text_and_ridge_is_scikit_learns_lda() -> None:
    """(n−1)S is replaced by S + λI there: the same directions where the ridge is made the same."""
    data, _, queries = drawn()
    m = data.moments()
    scatter = m.gram - m.sums.T @ (m.sums / m.counts[:, None])
    shrunk = (scatter + scatter.trace() / 59 * torch.eye(12).double()).numpy()

    class Same:
        def fit(self, _x: np.ndarray) -> Same:
            self.covariance_ = shrunk / 12  # what our inverse is the inverse of
            return self

    lda = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Same(), priors=np.full(5, 0.2))
    lda.fit(data.features.double().numpy(), data.labels.numpy())
    none = Text(torch.zeros(5, 12), 100.0)
    ours = fit(head("gda", alpha=1, shots=[12]), data, none).classifier.logits(torch.tensor(queries))
    np.testing.assert_allclose(ours.numpy(), lda.decision_function(queries), rtol=1e-6, atol=1e-6)


def test_gda_of_one_sample_a_class_is_zero_shot_and_not_noise() -> None:
    data, text, queries = drawn(count=5)
    assert inverse_covariance(data.moments()).abs().max() == 0
    x = torch.tensor(queries)
    ours = fit(head("gda", alpha=1, shots=[1]), data, text).classifier.logits(x)
    torch.testing.assert_close(ours, text.logits(x) - math.log(5), rtol=1e-9, atol=1e-9)
    auto = fit(head("gda", shots=[1]), data, text).classifier.logits(x)
    torch.testing.assert_close(auto, text.logits(x), rtol=1e-9, atol=1e-9)


def test_tip_gives_a_class_alpha_where_a_key_is_the_image() -> None:
    data, text = support(np.eye(3), [0, 1, 2]), Text(torch.eye(3), 100.0)
    x = data.features[2:]
    ours = fit(head("tip", alpha=2.0, beta=50.0, shots=[1]), data, text).classifier.logits(x) - text.logits(x)
    assert ours[0].tolist() == pytest.approx([0, 0, 2], abs=1e-12)


def test_tip_is_the_authors_formula() -> None:
    data, text, queries = drawn()
    x, keys = torch.tensor(queries), data.features.double()
    values = torch.nn.functional.one_hot(data.labels).double()
    affinity = x @ keys.T
    expected = 100 * x @ text.features.double().T + (-(5.5 - 5.5 * affinity)).exp() @ values * 1.0
    torch.testing.assert_close(fit(head("tip", shots=[12]), data, text).classifier.logits(x), expected)


def test_knn_votes_by_similarity_and_leaves_a_sure_zero_shot_alone() -> None:
    data = support([[1.0, 0], [0.8, 0.6], [0, 1]], [0, 1, 1])
    text = Text(torch.tensor([[0.0, 1], [1, 0]]), 1.0)
    x = torch.tensor([[1.0, 0]])
    votes = np.exp([1 / 0.07, 0.8 / 0.07])
    expected = votes / votes.sum()
    zeroshot = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    ours = fit(head("knn", neighbours=2, mix=1.0), data, text).classifier.logits(x)
    assert ours[0].tolist() == pytest.approx(expected.tolist())
    half = fit(head("knn", neighbours=2), data, text).classifier.logits(x)
    assert half[0].tolist() == pytest.approx(((expected + zeroshot) / 2).tolist())
    sure = fit(head("knn", neighbours=2, threshold=0.7), data, text).classifier.logits(x)
    assert sure[0].tolist() == pytest.approx(zeroshot.tolist())


def test_herding_keeps_what_is_nearest_to_the_mean() -> None:
    data = support([[1.0, 0], [0.0, 1], [0.6, 0.8], [1, 0]], [0, 0, 0, 1])
    assert herded(data, 1).tolist() == [False, False, True, True]
    assert herded(data, 3).all()


@pytest.mark.parametrize("c", [0.316, 31.6])
def test_linear_is_scikit_learns_logistic_regression(c: float) -> None:
    data, _, queries = drawn()
    ours = regression(data, c)
    theirs = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(data.features.double().numpy(), data.labels.numpy())
    found = ours.logits(torch.tensor(queries)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, theirs.predict_proba(queries), atol=1e-5)


def test_a_search_uses_held_out_support_alone_and_says_so() -> None:
    data, text, _ = drawn()
    wrong = Text(text.features.flip(0), 100.0)  # prompts of other classes: the samples must win
    found = fit(head("gda", alpha="search", shots=[12]), data, wrong)
    assert found.searched
    assert getattr(found.head, "alpha") > 1  # noqa: B009 - a setting of this head
    part, held = data.held_out()
    assert held.counts().tolist() == [3] * 5
    assert part.counts().tolist() == [9] * 5
    assert not set(part.ranks.tolist()) & set(held.ranks.tolist())


def test_a_search_with_nothing_to_hold_out_takes_the_defaults() -> None:
    data, text, _ = drawn(count=5)
    found = fit(head("tip", alpha="search", beta="search", shots=[1]), data, text)
    assert not found.searched
    assert found.head == head("tip", shots=[1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "gda", "shots": [4, 2]}, "shots rise, each once"),
        ({"name": "gda", "shots": [0]}, "greater than 0"),
        ({"name": "tip", "shots": ["all"]}, "tip keeps the features of every sample: give a number of shots"),
        ({"name": "gda", "alpha": "search"}, "alpha: search needs samples to hold out"),
        ({"name": "gda", "alpha": -1}, "greater than 0"),
        ({"name": "gad"}, "there is no 'gad'; there are gda, knn, linear, prototype, tip, zeroshot"),
        ({"name": "knn", "k": 3}, "no setting 'k'"),
        ({"name": "prototype", "features": "last"}, "features got 'last'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^evaluate.heads: .*{says}") as raised:
        chosen(LabelledHead(**settings))
    assert "\n" not in str(raised.value)


def test_bad_support_is_refused_in_one_line() -> None:
    data, text, _ = drawn()
    with pytest.raises(UserError, match="class 'c05' has no support"):
        fit(head("tip"), Support((*data.classes, "c05"), data.features, data.labels, data.ranks), text)
    with pytest.raises(UserError, match="only 'c00' has labelled samples; a head needs two classes"):
        fit(head("tip"), support(np.eye(3), [0, 0, 0]), text)
    with pytest.raises(UserError, match="features of 12 and of 7 dimensions cannot be used together"):
        fit(head("gda"), data.moments(), Text(torch.zeros(5, 7), 100.0))
    with pytest.raises(UserError, match="are not finite"):
        fit(head("tip"), Support(data.classes, data.features / 0, data.labels, data.ranks), text)
    sums = data.moments()
    beyond = replace(sums, gram=torch.full_like(sums.gram, 1.5e308))
    with pytest.raises(UserError, match="the covariance of the features has no inverse"):
        fit(head("gda"), beyond, text)
    for name in ("prototype", "gda", "tip", "knn", "linear"):
        classifier = fit(head(name, shots=[12]), data, text).classifier
        with pytest.raises(UserError, match="cannot be used together; both must come from the same model"):
            classifier.logits(torch.zeros(1, 7))


def test_every_head_learns_what_is_easy() -> None:
    """Two classes whose prompts say the opposite of their samples by a little."""
    data = support([[1.0, 0], [0.98, 0.199], [0, 1], [0.199, 0.98]], [0, 0, 1, 1])
    text = Text(torch.tensor([[0.7, 0.71], [0.71, 0.7]]), 10.0)
    x = torch.tensor([[0.995, 0.0999], [0.0999, 0.995]])
    for name in ("prototype", "gda", "tip", "knn", "linear"):
        assert fit(head(name, shots=[2]), data, text).classifier.logits(x).argmax(dim=1).tolist() == [0, 1], name


def test_a_class_that_is_taken_out_of_sums_was_never_there() -> None:
    data, text, queries = drawn()
    total, out = data.moments(), data.where(data.labels == 3)
    left = data.where(data.labels != 3)
    names = tuple(name for name in data.classes if name != "c03")
    taken = minus(total, moments(("c03",), out.features, torch.zeros(len(out.labels), dtype=torch.int64)))
    never = moments(names, left.features, torch.where(left.labels > 3, left.labels - 1, left.labels))
    assert taken.classes == never.classes
    keep = Text(text.features[[0, 1, 2, 4]], 100.0)
    x = torch.tensor(queries)
    torch.testing.assert_close(
        fit(head("gda"), taken, keep).classifier.logits(x), fit(head("gda"), never, keep).classifier.logits(x)
    )
    with pytest.raises(UserError, match="class 'x' cannot be taken out: it is not there"):
        minus(total, moments(("x",), out.features, torch.zeros(len(out.labels), dtype=torch.int64)))
    with pytest.raises(UserError, match="class 'c03': more samples are to be taken out than there are"):
        minus(total, moments(("c03",), data.features, torch.zeros(len(data.labels), dtype=torch.int64)))
