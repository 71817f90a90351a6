"""Trees that overrides are tried on."""

from pathlib import Path
from typing import Any, ClassVar

from common.config import RunConfig
from common.config.jobs import BdhsJobConfig, ImportSettings, InspectSettings
from common.config.overrides import load_config

ONLINE = "--mixture.online_fraction=1"


def switched(*words: str) -> RunConfig:
    """The online preset, whose prompts are of the kind shapes with a count, with overrides."""
    return load_config(Path("cluster/configs/shapes_online.toml"), words)


class AllJobs(BdhsJobConfig):
    """The trees of all commands in one."""

    keys_read: ClassVar[tuple[str, ...]] = ()
    import_data: ImportSettings
    inspect: InspectSettings
    job_defaults: ClassVar[dict[str, Any]] = {
        "generate": {"out": "x"},
        "import_data": {"name": "x", "path": "x", "out": "x"},
        "inspect": {"directory": "x"},
    }
