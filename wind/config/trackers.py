"""Which experiment trackers hear of a run's versions."""

from typing import Literal

from pydantic import Field

from wind.config.base import Section


class TensorBoardConfig(Section):
    """Event files, one folder per run."""

    # holds the folders of all runs
    folder: str


class WandbConfig(Section):
    """Weights & Biases; the key is in the environment, as WANDB_API_KEY."""

    project: str
    entity: str | None = None
    # offline: write files for `wandb sync`; online: send them
    mode: Literal["offline", "online"] = "offline"
    # default: trackers/wandb in the store
    folder: str | None = None


class MlflowConfig(Section):
    """A tracking server of MLflow; credentials are in the environment, as MLFLOW_TRACKING_TOKEN."""

    # such as http://127.0.0.1:5000
    url: str = Field(pattern=r"^https?://")
    experiment: str = "wind"


class TrackioConfig(Section):
    """A local database of Trackio."""

    project: str
    # default: trackers/trackio in the store
    folder: str | None = None


class TrackersConfig(Section):
    """The trackers that hear of each published version; none by default.

    What a tracker makes of it never reaches the run: one that fails or is slow is named in a
    warning, and a rerun tells it what it missed.
    """

    tensorboard: TensorBoardConfig | None = None
    wandb: WandbConfig | None = None
    mlflow: MlflowConfig | None = None
    trackio: TrackioConfig | None = None
    # held-out prompts whose responses are shown
    prompts: int = Field(8, ge=0, le=1000)
    # seconds that one tracker may take for one version
    timeout: float = Field(60.0, gt=0)

    def chosen(self) -> dict[str, Section]:
        """Return the section of each tracker that is on, by its name."""
        sections = {name: getattr(self, name) for name in TRACKERS}
        return {name: section for name, section in sections.items() if section is not None}


# Each with the distribution that has it.
TRACKERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny",
    "trackio": "trackio",
}
