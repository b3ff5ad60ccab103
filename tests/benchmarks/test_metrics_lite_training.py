"""Training ``lite``: the least-squares fit, the losses by hand, resuming, and what stops it. No real weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.metrics import backbones, load_lpips
from benchmarks.metrics.lite_data import Groups, join_photos, random_crop
from benchmarks.metrics.lite_fields import Fields, Targets, field_losses
from benchmarks.metrics.lite_fitting import TapPlan, _solve, fit_layers, plan_taps
from benchmarks.metrics.lite_training import LiteConfig, checkpoint_of, train_lite
from benchmarks.metrics.lpips import LPIPS
from models.artifact import sidecar_of
from models.errors import CheckpointError, ConfigError, DataError, RunFolderError
from models.progress import Bar, SilentProgress


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, and a random ``squeeze`` as its official files."""
    root = tmp_path_factory.mktemp("lite")
    (root / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        cells = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        cells.resize((180, 140), Image.Resampling.BICUBIC).save(root / "photos" / f"{index}.png")
    torch.manual_seed(0)
    features = backbones.squeezenet_features()
    torch.save(features.state_dict(), root / "squeezenet1_1_features.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(features.channels)}
    torch.save(heads, root / "lin_squeeze.pth")
    return root


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> LiteConfig:
    return LiteConfig(
        data=(folder / "photos",),
        output=tmp_path / "lite.safetensors",
        lpips_weights=folder,
        steps=3,
        fit_groups=1,
        pixels=4 * 64 * 64,
        sizes=((64, 1.0),),
        warmup=1,
        checkpoint_every=1,
    )


class Interrupt(SilentProgress):
    """Presses Ctrl-C after ``steps`` training steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @contextmanager
    def track(self, description: str, total: float | None = None) -> Iterator[Bar]:
        owner = self

        class Stop:
            def advance(self, steps: float = 1, **values: float | str) -> None:
                owner.left -= bool(values)
                if owner.left == 0:
                    raise KeyboardInterrupt

        yield Stop()


class TestFit:
    @pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 0), (1, 1, 0), (3, 1, 1)])
    def test_recovers_a_convolution_from_what_it_computes(self, kernel: int, stride: int, padding: int) -> None:
        known, fitted = (
            nn.Conv2d(4, 5, kernel, stride=stride, padding=padding).requires_grad_(False) for _ in range(2)
        )
        inputs = list(torch.rand(2, 2, 4, 20, 20))
        _solve(fitted, inputs, [known(x) for x in inputs], torch.Generator().manual_seed(0))
        assert torch.allclose(fitted.weight, known.weight, atol=2e-3)
        assert torch.allclose(fitted.bias, known.bias, atol=2e-3)

    def test_brings_every_tap_close_to_the_official_one(self, folder: Path) -> None:
        teacher = load_lpips("squeeze", folder)
        images = Groups(join_photos([folder / "photos"]), ((128, 1.0),), 4 * 128 * 128, 0).batch(0).flatten(0, 1)
        lite = LPIPS(backbones.lite_features(), "lite").requires_grad_(False)
        plans = plan_taps(teacher, lite, images)
        fit_layers(teacher, lite, images, plans)
        for ours, official, plan in zip(lite.taps(images), teacher.taps(images), plans, strict=True):
            wanted = official[:, plan.order]
            assert ours.shape == wanted.shape
            assert (ours - wanted).square().mean() < 0.2 * wanted.var(dim=(0, 2, 3)).mean()

    def test_a_plan_keeps_each_kind_of_channel_on_its_side(self, folder: Path) -> None:
        teacher, lite = load_lpips("squeeze", folder), LPIPS(backbones.lite_features(), "lite")
        for index, plan in enumerate(plan_taps(teacher, lite, torch.rand(2, 3, 64, 64))):
            width, layer = lite.features.channels[index], lite.features[lite.features.taps[index]]
            assert len(plan.order) == len(plan.order.unique()) == width
            assert 0 <= plan.first < plan.first + plan.heads <= width
            assert 0 < plan.coverage <= 1.0001
            if isinstance(layer, backbones.Fire):
                ones = plan.order < teacher.features.channels[index] // 2
                assert ones.tolist() == [c < layer.expand1x1.out_channels for c in range(width)]


class TestLosses:
    plan = TapPlan(torch.arange(2), 0, 2, variance=0.5, coverage=1.0)

    def fields(self, values: list[float]) -> list[torch.Tensor]:
        """One group of four versions, one tap of two channels and one pixel."""
        return [torch.tensor([[value, 0.0] for value in values]).view(4, 2, 1, 1)]

    def test_by_hand(self) -> None:
        wanted = self.fields([0.0, 0.1, 0.2, 0.4])
        targets = Targets(wanted, torch.tensor([[[0.01, 0.04, 0.16]]]))
        got = field_losses(self.fields([0.0, 0.2, 0.2, 0.4]), targets, [self.plan], 1)
        assert got["field"].item() == pytest.approx(0.1**2 / 4 / 0.5)
        assert got["difference"].item() == pytest.approx(0.01 / (0.01 + 0.005 * 0.5) / 3)
        assert got["error"].item() == pytest.approx(0.03 / 3)
        assert got["distance"].item() == pytest.approx(1.3 * 0.03 / (0.01 + 0.02) / 3)

    def test_are_zero_for_the_official_fields(self) -> None:
        wanted = self.fields([0.0, 0.1, 0.2, 0.4])
        targets = Targets(wanted, torch.tensor([[[0.01, 0.04, 0.16]]]))
        assert all(abs(loss.item()) < 1e-7 for loss in field_losses(wanted, targets, [self.plan], 1).values())

    def test_the_distance_of_the_fields_is_the_lpips_of_the_written_heads(self) -> None:
        metric = LPIPS(backbones.fire_features(8, ((4, 6, 6),) * 8), "lite")
        fields = Fields(metric, [(1, 6)] * 7)
        for scale in fields.scales:
            scale.data.uniform_(-1, 1)
        first, second = torch.rand(2, 1, 3, 48, 48)
        pairs = zip(fields(first), fields(second), strict=True)
        wanted = torch.stack([(a - b).square().sum() / a[0, 0].numel() for a, b in pairs]).sum()
        assert fields.write_heads()(first, second).item() == pytest.approx(wanted.item(), rel=1e-4)


class TestData:
    def test_a_batch_depends_on_seed_and_step_only(self, folder: Path) -> None:
        photos = join_photos([folder / "photos"])
        first, second = (Groups(photos, ((64, 0.5), (96, 0.5)), 4 * 96 * 96, 3).batch(5) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, Groups(photos, ((64, 0.5), (96, 0.5)), 4 * 96 * 96, 3).batch(6, rank=1))

    def test_groups_have_four_versions_in_range(self, folder: Path) -> None:
        batch = Groups(join_photos([folder / "photos"]), ((64, 1.0),), 8 * 64 * 64, 0).batch(0)
        assert batch.shape == (2, 4, 3, 64, 64)
        assert 0 <= batch.min() <= batch.max() <= 1

    @pytest.mark.parametrize("size", [64, 300])
    def test_a_crop_has_the_size_that_was_asked_for(self, size: int) -> None:
        rgb = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        assert random_crop(rgb, size, np.random.default_rng(1)).shape == (3, size, size)

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="an empty folder"):
            join_photos([tmp_path])


class TestTraining:
    def test_writes_weights_and_card_and_resumes_after_ctrl_c(self, config: LiteConfig, tmp_path: Path) -> None:
        train_lite(config)
        card = json.loads(sidecar_of(config.output).read_text())
        assert card["recipe"]["steps"] == 3
        assert card["photos"] == 4
        assert card["parameters"] <= 500_000
        assert not checkpoint_of(config.output).exists()
        again = replace(config, output=tmp_path / "again.safetensors")
        with pytest.raises(KeyboardInterrupt):
            train_lite(again, Interrupt(2))
        assert checkpoint_of(again.output).exists()
        train_lite(again)
        whole, resumed = (load_lpips("lite", path) for path in (config.output, again.output))
        for (name, first), second in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
            assert torch.allclose(first, second, atol=1e-3), name

    def test_the_verb_runs_whole(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from benchmarks.cli import main

        output = tmp_path / "new" / "lite.safetensors"
        argv = ["train-lite", "--data", str(folder / "photos"), "--lpips-weights", str(folder), "-o", str(output), "-q"]
        assert main([*argv, "--fit-groups", "1", "--steps", "0"]) == 0
        assert capsys.readouterr().out.strip() == str(output)
        assert load_lpips("lite", output) is not None
        assert json.loads(sidecar_of(output).read_text())["recipe"]["fit_groups"] == 1

    def test_figures_that_fail_cost_no_training(self, config: LiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("no figures")

        slow = replace(config, steps=2, checkpoint_every=250)
        with monkeypatch.context() as patch:
            patch.setattr("benchmarks.metrics.lite_training.write_lite", fail)
            with pytest.raises(OSError, match="no figures"):
                train_lite(slow)
        monkeypatch.setattr("benchmarks.metrics.lite_training.LiteTrainer.train_step", fail)
        train_lite(slow)
        assert config.output.exists()

    def test_photos_for_the_figures_are_looked_for_before_it_begins(self, config: LiteConfig, tmp_path: Path) -> None:
        grey = tmp_path / "grey"
        grey.mkdir()
        Image.new("RGB", (64, 64), (90, 90, 90)).save(grey / "a.png")
        with pytest.raises(DataError, match="1 grey"):
            train_lite(replace(config, eval_data=grey))
        assert not checkpoint_of(config.output).exists()
        assert not config.output.exists()

    def test_a_checkpoint_of_another_recipe_is_refused(self, config: LiteConfig) -> None:
        torch.save({"recipe": {**config.recipe(), "photos": "x"}, "state": {}}, checkpoint_of(config.output))
        with pytest.raises(RunFolderError, match=r"another recipe \(photos differ\); fix: repeat the first command"):
            train_lite(config)

    def test_a_damaged_checkpoint_is_refused(self, config: LiteConfig) -> None:
        checkpoint_of(config.output).write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match=r"expected a checkpoint of train-lite, got .* fix: delete it"):
            train_lite(config)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data": ()}, r"LiteConfig.data: expected one folder or more, got none; fix: give --data DIR"),
        (
            {"output": Path("lite.pt")},
            r"LiteConfig.output: expected a .safetensors file, got lite.pt; fix: give -o FILE",
        ),
        ({"steps": -1}, "LiteConfig.steps: expected 0 or more, got -1"),
        ({"sizes": ((32, 1.0),)}, "LiteConfig.sizes: expected sides of 64 or more"),
        ({"ema": 1.0}, "LiteConfig.ema: expected 0 to below 1, got 1.0"),
        ({"pixels": 100}, "LiteConfig.pixels: expected 16384 or more, got 100"),
        ({"learning_rate": 0.0}, "LiteConfig.learning_rate: expected more than 0, got 0.0"),
    ],
)
def test_a_bad_config_is_refused(config: LiteConfig, change: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(config, **change)
