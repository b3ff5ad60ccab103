"""The training loop: schedule, average, checkpoints, and going on exactly where it stopped."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from own_networks import Overwriting
from torch import Tensor, nn

from models.errors import CheckpointError, ConfigError, RunFolderError, TrainingError, UnsupportedError
from optimize.loop import Ema, Fit, FitConfig, Phase, Step, phases_from, run_fit, settled_precision, total_steps


class Numbers:
    """Twelve items whose values depend on the epoch, as crops do."""

    def __init__(self, length: int = 12) -> None:
        self.epoch, self.length = 0, length
        self.seen: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        self.seen.append((self.epoch, index))
        generator = torch.Generator().manual_seed(100 * self.epoch + index)
        return torch.randn(3, 8, 8, generator=generator)


def small_net() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 1))


def config(**changes: Any) -> FitConfig:
    defaults = {"phases": (Phase(32, 2, 4),), "mixed_precision": "no", "learning_rate": 1e-2}
    return FitConfig(**{**defaults, **changes})


def fit_of(folder: Path, settings: FitConfig | None = None, **parts: Any) -> Fit:
    return Fit(small_net(), settings or config(), checkpoint=folder / "net.checkpoint.safetensors", **parts)


def learn(fit: Fit) -> Step:
    """Learn to negate."""
    return lambda batch, fraction: {"loss": (fit.net(batch) + batch).square().mean()}


def run(fit: Fit, step: Step | None = None, data: Numbers | None = None, **options: Any) -> Numbers:
    data = data or Numbers()
    run_fit(fit, lambda phase: data, step or learn(fit), description="Learning", **options)
    return data


def stopping(fit: Fit, at: int, error: BaseException) -> Step:
    """Like ``learn``, but something happens at step ``at``."""
    inner = learn(fit)

    def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
        if fit.step == at:
            raise error
        return inner(batch, fraction)

    return step


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_fit_learns_and_counts(tmp_path: Path) -> None:
    fit = fit_of(tmp_path, config(phases=(Phase(32, 10, 4),), learning_rate=0.03))
    losses: list[float] = []
    inner = learn(fit)

    def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
        values = inner(batch, fraction)
        losses.append(float(values["loss"].detach()))
        return values

    data = run(fit, step)
    assert fit.step == len(losses) == 30 == total_steps(fit.config, 12)
    assert losses[-1] < 0.5 * losses[0]
    assert fit.seconds > 0
    assert {index for epoch, index in data.seen if epoch == 0} == set(range(12))
    assert [index for epoch, index in data.seen if epoch == 0] != [index for epoch, index in data.seen if epoch == 1]
    assert fit.checkpoint.is_file()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("at", [1, 3, 4], ids=["first epoch", "edge", "second epoch"])
def test_a_resumed_fit_is_the_same_as_an_uninterrupted_one(tmp_path: Path, at: int, optimizer: str) -> None:
    settings = config(optimizer=optimizer)
    whole = fit_of(tmp_path / "whole", settings)
    seen = run(whole).seen
    first = fit_of(tmp_path / "parts", settings)
    with pytest.raises(KeyboardInterrupt):
        run(first, stopping(first, at, KeyboardInterrupt()))
    assert first.step == at
    second = fit_of(tmp_path / "parts", settings)
    assert second.resume()
    assert second.step == at
    torch.manual_seed(99)  # whatever happened between
    again = run(second).seen
    assert again[-4:] == seen[-4:]
    assert second.step == whole.step == 6
    assert same(second.raw_net, whole.raw_net)
    assert same(second.ema.net, whole.ema.net)
    assert second.ema.steps == whole.ema.steps


def test_extras_and_adversary_resume_too(tmp_path: Path) -> None:
    def build() -> Fit:
        torch.manual_seed(1)
        return fit_of(tmp_path, extras=nn.Conv2d(3, 3, 1), adversary=nn.Conv2d(3, 1, 3))

    def step_of(fit: Fit) -> Step:
        def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
            verdict = fit.adversary(batch).square().mean()
            fit.accelerator.backward(verdict)
            fit.adversary_optimizer.step()
            fit.adversary_optimizer.zero_grad()
            return {"loss": (fit.extras(fit.net(batch)) + batch).square().mean()}

        return step

    fit = build()
    start = fit.extras.weight.detach().clone()
    run(fit, step_of(fit))
    assert not torch.equal(start, fit.extras.weight)
    back = build()
    assert back.resume()
    assert same(back.extras, fit.extras)
    assert same(back.adversary, fit.adversary)
    moments = [fit.adversary_optimizer.state_dict(), back.adversary_optimizer.state_dict()]
    assert torch.equal(moments[0]["state"][0]["exp_avg"], moments[1]["state"][0]["exp_avg"])


class Viewing(nn.Module):
    """Views weights and values as only the usual order in memory allows, and has a weight of five dimensions."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, kernel, padding="same"), nn.Conv2d(4, 3, 1)
        self.gain = nn.Linear(4 * 8 * 8, 4)
        self.kernels = nn.Parameter(torch.ones(2, 4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight
        weight = weight / weight.view(len(weight), -1).std(1).view(-1, 1, 1, 1)
        y = nn.functional.conv2d(x, weight, self.first.bias, padding="same")
        gain = self.gain(y.view(len(y), -1))[:, :, None, None]
        return self.last(nn.functional.conv2d(y * gain, self.kernels.mean(0)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_network_that_cannot_have_its_channels_last_learns_too(kernel: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    fit = Fit(Viewing(kernel), config(), checkpoint=tmp_path / "net.checkpoint.safetensors")
    assert fit.raw_net.first.weight.stride()[1] == 1
    before = fit.raw_net.first.weight.detach().clone()
    run(fit)
    assert fit.step == 6
    assert not torch.equal(fit.raw_net.first.weight, before)
    assert fit.ema.net(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    again = Fit(Viewing(kernel), config(phases=(Phase(32, 3, 4),)), checkpoint=fit.checkpoint)
    assert again.resume()
    run(again)
    assert again.step == 9


def test_a_network_that_writes_over_what_its_backward_needs_learns_too(tmp_path: Path) -> None:
    net, other = Overwriting(), Overwriting(in_place=False)
    other.load_state_dict(net.state_dict())
    fits = [Fit(one, config(), checkpoint=tmp_path / f"{one.in_place}.safetensors") for one in (net, other)]
    for fit in fits:
        run(fit)
    assert [fit.step for fit in fits] == [6, 6]
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)


class DeeplySupervised(nn.Module):
    """Answers with two pictures in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.1)
        self.last, self.side = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.drop(self.norm(self.first(x)))
        return (self.last(y), self.side(y)) if self.training else self.last(y)


def test_a_network_learns_on_the_path_that_ships(tmp_path: Path) -> None:
    """Its layers train all the same."""
    fit = Fit(DeeplySupervised(), config(), checkpoint=tmp_path / "net.checkpoint.safetensors")
    run(fit)
    assert fit.step == 6
    assert fit.raw_net.drop.training
    assert fit.raw_net.norm.num_batches_tracked == 6


def test_a_network_without_gradients_is_told_so(tmp_path: Path) -> None:
    fit = fit_of(tmp_path)

    def blind(batch: Tensor, fraction: float) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return {"loss": fit.net(batch).square().mean()}

    with pytest.raises(
        UnsupportedError, match=r"expected a network with gradients, got an answer that no .*; fix: remove"
    ):
        run(fit, blind)


def test_other_errors_of_a_network_pass(tmp_path: Path) -> None:
    fit = fit_of(tmp_path)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(fit, stopping(fit, 1, RuntimeError("out of luck")))
    assert fit.raw_net[0].weight.stride()[1] == 1


def test_a_finished_fit_does_nothing_more(tmp_path: Path) -> None:
    run(fit_of(tmp_path))
    back = fit_of(tmp_path)
    assert back.resume()
    assert run(back).seen == []


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert not fit_of(tmp_path).resume()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_and_leaves_the_checkpoint(tmp_path: Path, value: float) -> None:
    fit = fit_of(tmp_path)
    fit.save()
    before = fit.checkpoint.read_bytes()
    inner = learn(fit)

    def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
        return {"loss": inner(batch, fraction)["loss"] * (value if fit.step == 2 else 1.0)}

    message = (
        rf"loss: expected finite numbers, got {value} at step 2; fix: lower --learning-rate \(now 0\.01\); .* resumes"
    )
    with pytest.raises(TrainingError, match=message):
        run(fit, step)
    assert fit.checkpoint.read_bytes() == before


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path: Path) -> None:
    fit = fit_of(tmp_path)

    def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
        return {"loss": (fit.net(batch) * 0).abs().sqrt().sum()}

    with pytest.raises(TrainingError, match=r"gradient: expected finite numbers, got .* at step 0; fix: lower --"):
        run(fit, step)
    assert all(bool(torch.isfinite(p).all()) for p in fit.raw_net.parameters())


def test_ctrl_c_saves_a_checkpoint(tmp_path: Path) -> None:
    fit = fit_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(fit, stopping(fit, 2, KeyboardInterrupt()))
    back = fit_of(tmp_path)
    assert back.resume()
    assert back.step == 2
    assert same(back.raw_net, fit.raw_net)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run(fit_of(tmp_path))
    other = Fit(nn.Conv2d(3, 3, 1), config(), checkpoint=tmp_path / "net.checkpoint.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of this training, got Error.*fix: remove it"):
        other.resume()


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    fit = fit_of(tmp_path)
    fit.save()
    fit.checkpoint.write_bytes(fit.checkpoint.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"expected a readable checkpoint, got .*truncated"):
        fit_of(tmp_path).resume()


def test_a_full_disk_is_said_and_the_old_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fit_of(tmp_path)
    fit.save()
    before = fit.checkpoint.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RunFolderError, match="No space left on device; fix: free disk space"):
        run(fit)
    assert fit.checkpoint.read_bytes() == before


def test_checkpoints_are_written_on_the_way(tmp_path: Path) -> None:
    fit = fit_of(tmp_path, config(checkpoint_seconds=0.0))
    found: list[bool] = []
    inner = learn(fit)

    def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
        found.append(fit.checkpoint.is_file())
        return inner(batch, fraction)

    run(fit, step)
    assert found == [False, True, True, True, True, True]


def test_phases_follow_each_other_with_their_own_sizes(tmp_path: Path) -> None:
    fit = fit_of(tmp_path, config(phases=(Phase(32, 1, 4), Phase(64, 2, 6), Phase(32, 1, 12))))
    made: list[int] = []
    batches: list[int] = []
    ends: list[int] = []
    inner = learn(fit)

    def dataset_of(phase: Phase) -> Numbers:
        made.append(phase.size)
        return Numbers()

    def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
        batches.append(len(batch))
        return inner(batch, fraction)

    run_fit(fit, dataset_of, step, description="Learning", on_epoch=ends.append)
    assert made == [32, 64]
    assert batches == [4, 4, 4, 6, 6, 6, 6, 12]
    assert ends == [0, 1, 2, 3]
    assert total_steps(fit.config, 12) == 8


def test_fewer_items_than_a_batch_still_train(tmp_path: Path) -> None:
    fit = fit_of(tmp_path, config(phases=(Phase(32, 3, 16),)))
    run(fit, data=Numbers(2))
    assert fit.step == 3


def test_the_time_limit_ends_the_training_and_the_schedule(tmp_path: Path) -> None:
    fit = fit_of(tmp_path, config(phases=(Phase(32, 1000, 4),), max_minutes=1.0))
    fractions: list[float] = []
    inner = learn(fit)

    def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
        fractions.append(fraction)
        fit.seconds += 15.0
        return inner(batch, fraction)

    run(fit, step)
    assert 4 <= fit.step <= 5
    assert fractions[2] == pytest.approx(0.5, abs=0.1)
    assert fit.fraction(3000) == 1.0


@pytest.mark.parametrize(
    ("minutes", "opened", "moved"), [(None, ("Learning", 12, 0), 1), (1.0, ("Learning (%)", 100, 0.0), 25)]
)
def test_the_bar_counts_what_ends_the_training_first(
    tmp_path: Path, minutes: float | None, opened: tuple[str, float, float], moved: float
) -> None:
    fit = fit_of(tmp_path, config(phases=(Phase(32, 4, 4),), max_minutes=minutes))
    inner, bars, moves = learn(fit), list[tuple[str, float | None, float]](), list[float]()

    class Bars:
        def track(self, description: str, total: float | None = None, *, completed: float = 0) -> Any:
            bars.append((description, total, completed))
            return nullcontext(self)

        def advance(self, steps: float = 1, **values: float | str) -> None:
            moves.append(steps)

        def note(self, text: str) -> None:
            raise AssertionError(text)

    def step(batch: Any, fraction: float) -> Mapping[str, Tensor]:
        fit.seconds += 15.0
        return inner(batch, fraction)

    run_fit(fit, lambda phase: Numbers(), step, description="Learning", progress=Bars())
    assert bars == [opened]
    assert moves[:2] == pytest.approx([moved, moved], rel=0.05)


def test_the_rate_warms_up_and_falls(tmp_path: Path) -> None:
    fit = fit_of(tmp_path, config(learning_rate=1.0))
    rates = []
    for fraction in (0.0, 0.05, 0.5, 1.0):
        fit.set_rate(fraction)
        rates.append(fit.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.02, 0.99 * 0.5 * (1 + 0.98769) + 0.01, 0.505, 0.01], rel=1e-3)


def test_the_average_of_weights_worked_by_hand() -> None:
    net = nn.BatchNorm1d(1)
    ema = Ema(net, 0.5)
    net.weight.data.fill_(2.0)
    net.num_batches_tracked.fill_(7)
    ema.update(net)  # decay min(0.5, 2 / 11): 1 * 2/11 + 2 * 9/11
    assert ema.net.weight.item() == pytest.approx(20 / 11)
    assert ema.net.num_batches_tracked.item() == 7
    assert not ema.net.training
    assert not any(p.requires_grad for p in ema.net.parameters())


def test_fits_of_different_precision_follow_each_other(tmp_path: Path) -> None:
    for precision in ("no", "bf16", "no"):
        fit = fit_of(tmp_path / precision, config(phases=(Phase(32, 1, 12),), mixed_precision=precision))
        run(fit)
        with fit.accelerator.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert fit.accelerator.mixed_precision == precision
        assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


@pytest.mark.parametrize(
    ("flags", "cuda", "native", "expected"),
    [
        (("avx512_bf16", "avx512f"), False, False, "bf16"),
        (("asimd", "bf16"), False, False, "bf16"),
        (("avx512_vnni", "avx512f"), False, False, "no"),
        ((), True, True, "bf16"),
        (("avx512_bf16",), True, False, "no"),
    ],
)
def test_auto_is_bf16_where_the_device_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], cuda: bool, native: bool, expected: str
) -> None:
    monkeypatch.setattr("optimize.loop.cpu_flags", lambda: flags)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert settled_precision("auto") == expected
    assert [settled_precision(name) for name in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]


def test_the_account_says_in_what_precision(tmp_path: Path) -> None:
    fit = fit_of(tmp_path, config(phases=(Phase(32, 1, 12),), mixed_precision="auto"))
    run(fit)
    assert fit.account["mixed_precision"] == settled_precision("auto")
    assert fit.account["steps"] == fit.step > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Phase(16, 1), "phase: expected size >= 32, epochs >= 1, batch_size >= 1, got size 16, epochs 1"),
        (lambda: Phase(32, 0), "got size 32, epochs 0"),
        (lambda: FitConfig(phases=()), "phases: expected one or more, got none; fix: add a phase"),
        (lambda: config(learning_rate=0.0), r"optimizer: expected learning_rate > 0, ema_decay in \[0, 1\), got learn"),
        (lambda: config(ema_decay=1.0), r"got learning_rate 0\.01, ema_decay 1\.0"),
        (lambda: config(max_minutes=0.0), r"max_minutes: expected above 0, got 0\.0; fix: leave it out"),
        (lambda: phases_from([32], [1, 2], [4]), "three lists of one length, got 1 sizes, 2 epochs, 1 batch sizes"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_phases_from_lists() -> None:
    assert phases_from([64, 96], [8, 3], [32, 24]) == (Phase(64, 8, 32), Phase(96, 3, 24))


PROCESS = """
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from optimize.loop import Fit, FitConfig, Phase, run_fit
from optimize.steps import is_main_process, wait_for_all

torch.set_num_threads(1)


class Numbers:
    epoch = 0

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))


torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 1))
config = FitConfig(phases=(Phase(32, 50, 4),), mixed_precision="no", max_minutes=1.0)
fit = Fit(net, config, checkpoint=Path(sys.argv[1]) / "net.checkpoint.safetensors")


def step(batch, fraction):
    fit.seconds += 6.0 if is_main_process() else 1.0  # the processes differ in what they took for time
    return {"loss": (fit.net(batch) + batch).square().mean()}


run_fit(fit, lambda phase: Numbers(), step, description="Learning")
wait_for_all()
weights = torch.cat([p.detach().flatten() for p in fit.raw_net.parameters()])
Path(sys.argv[1], f"{fit.accelerator.process_index}.txt").write_text(f"{fit.step} {weights.sum().item():.6f}")
"""


def test_two_processes_train_one_network_and_end_together(tmp_path: Path) -> None:
    (tmp_path / "process.py").write_text(PROCESS, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path / "process.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"{index}.txt").read_text().split() for index in range(2))
    assert first == second
    assert 9 <= int(first[0]) <= 11
    assert (tmp_path / "net.checkpoint.safetensors").is_file()
