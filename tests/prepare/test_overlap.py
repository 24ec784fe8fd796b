"""Test images in what is trained on are found, however they are encoded; images that only resemble them are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import UserError
from tasks.model.datasets import Card, Dataset, Sample, write
from tasks.prepare import overlap

SIZE = 32


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Smooth random pictures, as photographs are: neighbouring pixels resemble each other."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (count, 6, 6, 3), np.uint8)
    return [np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for one in small]


def dataset(folder: Path, images: list[np.ndarray]) -> Dataset:
    samples = (Sample(f"{folder.name}-{i}", image, "a picture") for i, image in enumerate(images))
    write(folder, Card(folder.name, SIZE), samples, len(images))
    return Dataset(folder)


def encoded(image: np.ndarray, **settings: int) -> np.ndarray:
    """As JPEG gives it back."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **settings)
    return np.asarray(Image.open(file))


def test_equal_images_are_a_leak(tmp_path: Path) -> None:
    tests = pictures(20)
    train = [*pictures(30, seed=1), tests[7]]
    (found,) = overlap.find(dataset(tmp_path / "train", train), [dataset(tmp_path / "test", tests)])
    assert (found.equal, found.similar, found.total, found.example) == (1, 0, 20, "train-30 is test-7")
    with pytest.raises(UserError, match=r"arrival 'spring' holds test images: 1 of 20 images of the test set 'test'"):
        overlap.require_none("spring", [found])


@pytest.mark.parametrize("quality", [75, 90])
def test_a_test_set_that_was_encoded_once_more_is_a_leak(tmp_path: Path, quality: int) -> None:
    tests = pictures(20)
    train = [*pictures(30, seed=1), *(encoded(image, quality=quality) for image in tests)]
    (found,) = overlap.find(dataset(tmp_path / "train", train), [dataset(tmp_path / "test", tests)])
    assert found.equal + found.similar == 20
    assert found.is_leak


def test_a_lone_similar_image_is_counted_and_no_leak(tmp_path: Path) -> None:
    tests = pictures(20)
    train = [*pictures(30, seed=1), encoded(tests[3], quality=75)]
    (found,) = overlap.find(dataset(tmp_path / "train", train), [dataset(tmp_path / "test", tests)])
    assert (found.equal, found.similar, found.is_leak) == (0, 1, False)
    overlap.require_none("spring", [found])


def test_other_images_are_none(tmp_path: Path) -> None:
    tests = [dataset(tmp_path / "test", pictures(200))]
    assert overlap.find(dataset(tmp_path / "train", pictures(300, seed=1)), tests) == []


def test_plain_drawings_that_lie_elsewhere_are_others(tmp_path: Path) -> None:
    def square(x: int, colour: tuple[int, int, int]) -> np.ndarray:
        image = np.full((SIZE, SIZE, 3), 255, np.uint8)
        image[8:22, x : x + 14] = colour
        return image

    tests = dataset(tmp_path / "test", [square(8, (255, 0, 0))])
    others = [square(9, (255, 0, 0)), square(8, (255, 90, 0)), square(8, (0, 0, 255)), np.full((SIZE, SIZE, 3), 200)]
    assert overlap.find(dataset(tmp_path / "train", [np.asarray(one, np.uint8) for one in others]), [tests]) == []


def test_a_leak_is_refused_or_counted_as_the_params_say(tmp_path: Path) -> None:
    from tasks.params import Params
    from tests.project import PARAMS

    folders = tmp_path / "arrival", tmp_path / "evaluation"
    tests = pictures(20)
    dataset(folders[0], [*pictures(5, seed=1), *tests[:3]])
    sets = [{"name": "old", "test": ["images:x"]}]
    for one in ("old", "new"):
        (folders[1]).mkdir(parents=True, exist_ok=True)
        dataset(folders[1] / one, tests if one == "old" else pictures(9, seed=2))
    evaluate = {"adaptation": [{"name": "new", "test": ["images:y"]}], "retention": sets}
    arrival = {"name": "spring", "update": ["images:z"]}
    params = Params.model_validate({**PARAMS, "step": 1, "arrival": arrival, "evaluate": evaluate})
    with pytest.raises(UserError, match="arrival 'spring' holds test images: 3 of 20 images of the test set 'old'"):
        overlap.check(*folders, params, lambda *_: None)
    allowed = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"allow_overlap": True})})
    said: list[str] = []
    (found,) = overlap.check(*folders, allowed, lambda *told: said.append(str(told[-1])))
    assert found.facts == {"equal": 3, "similar": 0, "total": 20, "example": "arrival-5 is old-0"}
    assert said == [
        "of the 20 images of the test set 'old', 3 equal to images of arrival 'spring' (arrival-5 is old-0)"
    ]
