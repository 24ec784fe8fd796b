"""open_clip without transformers, timm and torch's compiler, until a model needs them; in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("timm", "transformers", "torch._dynamo")
VISION = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
PLAIN = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
TIMM = {"embed_dim": 16, "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160}, "text_cfg": TEXT}


def run(code: str, *arguments: str) -> dict[str, object]:
    """What a process of its own prints as JSON."""
    start = f"import json, sys\nheavy = lambda: [name for name in {HEAVY!r} if name in sys.modules]\n"
    light = "from tasks.model import light_imports\nlight_imports.prepare()\nimport open_clip\n"
    done = subprocess.run(
        [sys.executable, "-c", start + light + code, *arguments], capture_output=True, text=True, check=True
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_the_import_and_a_plain_model_need_none_of_them() -> None:
    code = "before = heavy()\nopen_clip.CLIP(**json.loads(sys.argv[1]))\nprint(json.dumps([before, heavy()]))"
    assert run(code, json.dumps(PLAIN)) == [[], []]


def test_a_model_that_needs_one_is_the_real_one() -> None:
    code = (
        "from open_clip.model import TimmModel\n"
        "model = open_clip.CustomTextCLIP(**json.loads(sys.argv[1]))\n"
        "module = sys.modules['open_clip.timm_model']\n"
        "print(json.dumps({'timm': 'timm' in heavy(), 'real': type(model.visual) is module.TimmModel,\n"
        "  'stands': isinstance(model.visual, TimmModel), 'name': type(model.visual).__qualname__,\n"
        "  'rest': sorted(set(heavy()) - {'timm', 'torch._dynamo'}), 'more': module.timm.__name__}))"
    )
    assert run(code, json.dumps(TIMM)) == {
        "timm": True, "real": True, "stands": True, "name": "TimmModel", "rest": [], "more": "timm"
    }  # fmt: skip


def test_a_function_and_other_names_of_a_deferred_module_are_the_real_ones() -> None:
    code = (
        "import torch, torchvision\n"
        "from torchvision.ops.poolers import roi_align\n"
        "from open_clip import hf_model\n"
        "try:\n    roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4), 2)\nexcept Exception as error:\n"
        "    said = f'{type(error).__name__}: {error}'\n"
        "print(json.dumps({'said': said, 'pooler': hf_model._POOLERS['mean_pooler'].__name__, 'heavy': heavy(),\n"
        "  'coca': open_clip.CoCa.__mro__[0].__name__, 'forward': callable(open_clip.CoCa.generate)}))"
    )
    result = run(code)
    assert "boxes" in str(result.pop("said"))
    assert result == {
        "pooler": "MeanPooler",
        "heavy": ["transformers", "torch._dynamo"],
        "coca": "CoCa",
        "forward": True,
    }


@pytest.mark.parametrize(("config", "needed"), [(PLAIN, []), (TIMM, ["timm"])])
def test_who_forks_for_a_step_imports_what_its_model_needs(
    config: dict[str, object], needed: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data/history/model").mkdir(parents=True)
    (tmp_path / "data/history/model/model.json").write_text(json.dumps({"name": "tiny", "model_cfg": config}))
    code = (
        "from pathlib import Path\nlight_imports.load_towers(Path('/nowhere'))\nbefore = heavy()\n"
        "light_imports.load_towers(Path(sys.argv[1]))\n"
        "print(json.dumps([before, [name for name in heavy() if name != 'torch._dynamo']]))"
    )
    assert run(code, str(tmp_path)) == [[], needed]
