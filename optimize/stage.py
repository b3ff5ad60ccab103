"""The contract of a stage: an artifact and a config in, an artifact out, with everything else in the context."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from models.artifact import Artifact
from models.errors import ConfigError, explain
from models.progress import NULL_PROGRESS, Progress
from models.spec import check_threads

if TYPE_CHECKING:
    from models.photos import PhotoSet


@dataclass(frozen=True)
class StageContext:
    """What a stage may use besides the artifact and its own config.

    Attributes:
        train: Photos to learn from.
        eval: Photos to measure with; never a photo of ``train``.
        calibration: Photos for the value ranges of INT8; never a photo of ``eval``.
        input_size: Height and width that artifacts are measured and exported at, pixels.
        seed: Of everything random.
        device: ``cpu``, ``cuda``, ``mps`` or ``auto`` (what Accelerate picks).
        threads: Threads of PyTorch and of the engines; None leaves their defaults.
        lpips_net: Net of every LPIPS number of the run: ``lite``, ``squeeze``, ``alex`` or ``vgg``.
        lpips_weights: File or folder with its weights; None: shipped, or the torch hub cache.
        teacher: The teacher's artifact, for stages that compare with it or learn from it.
        cache: Folder for what can be computed again (teacher answers); None: ``cache`` in the stage's folder.
        progress: Where to report.
    """

    train: PhotoSet
    eval: PhotoSet
    calibration: PhotoSet
    input_size: tuple[int, int] = (256, 256)
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    lpips_net: str = "lite"
    lpips_weights: Path | None = None
    teacher: Artifact | None = None
    cache: Path | None = None
    progress: Progress = field(default=NULL_PROGRESS, compare=False)

    def __post_init__(self) -> None:
        if min(self.input_size) < 1:
            fix = "use for example 256 256"
            raise ConfigError(explain("input size", expected="positive pixels", got=self.input_size, fix=fix))
        check_threads(self.threads)
        shared = set(self.train.paths) & set(self.eval.paths)
        if shared:
            fix = "split one folder with PhotoSet.split, or pass two folders"
            got = f"{len(shared)} photos in both, for example {sorted(shared)[0].name}"
            raise ConfigError(explain("photos", expected="training and evaluation apart", got=got, fix=fix))


@runtime_checkable
class Stage(Protocol):
    """A step of the pipeline. The modules named in ``optimize.registry`` follow it with module-level names.

    Attributes:
        name: Registry name.
        config_type: Frozen dataclass, validated in ``__post_init__``; every field has a default.
    """

    name: str
    config_type: type[Any]

    def run(self, artifact: Artifact | None, config: Any, data: StageContext, out: Path) -> Artifact:
        """Turn ``artifact`` into the next one.

        Args:
            artifact: What the stage before gave; None for ``train``.
            config: An instance of ``config_type``.
            data: Photos, seed, device, progress.
            out: Folder of this stage, made by the caller; it may hold a checkpoint of an interrupted run, from which
                the stage goes on.

        Returns:
            The new artifact, inside ``out``, with ``parent_sha256`` of ``artifact``.
        """
        ...
