"""What a site or a machine asks for: partition, modules, container, network variables, one YAML a site."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from trainer.config import PositiveInt, StrictModel
from trainer.errors import UserError
from trainer.setting_errors import describe_errors
from trainer.strict_yaml import KeyPath, parse_yaml

PROFILES_DIR = Path(__file__).parent / "profiles"

# Written into `#SBATCH` lines, which have quoting rules of their own: nothing that would need any.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Option = Annotated[str, Field(pattern=r"^--[a-z][a-z-]*(=[A-Za-z0-9._:,/+-]+)?$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/")]


class Container(StrictModel):
    """The image that holds Python and the packages: pyxis (srun --container-image) or apptainer exec.

    mounts: HOST:CONTAINER pairs beside the working folder, which is always mounted at its own path.
    """

    runtime: Literal["pyxis", "apptainer"]
    image: str
    mounts: tuple[str, ...] = ()


class Profile(StrictModel):
    """A site's settings. device: whether a process gets a GPU. python: the interpreter on the hosts.

    scratch: a folder on each host's own disk to which ready shards are copied first, or where those on the network
    are cached. grace_s: how long before the time limit the job is told to save.
    """

    device: Literal["gpu", "cpu"] = "gpu"
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    cpus_per_task: PositiveInt | None = None
    sbatch: tuple[Option, ...] = ()
    modules: tuple[str, ...] = ()
    container: Container | None = None
    environment: dict[Variable, str] = Field(default_factory=dict)
    scratch: AbsolutePath | None = None
    python: str | None = None
    grace_s: PositiveInt = 120

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: object) -> object:
        """YAML has lists only; a frozen model holds tuples."""
        return _with_tuples(values)


def load_profile(path_or_name: str) -> Profile:
    """Read a profile file, or the one of that name in cluster/profiles/; UserError for whatever is wrong with it."""
    path = _find(path_or_name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save the profile as UTF-8") from None
    document = parse_yaml(text, source=str(path))
    if not isinstance(document.value, dict):
        raise UserError(f"{path}: a profile is a mapping of keys to values; it needs at least one, such as device: cpu")

    def locate(key: KeyPath) -> str:
        known = [key[:length] for length in range(len(key), 0, -1) if key[:length] in document.lines]
        return f"{path}:{document.lines[known[0]]}" if known else str(path)

    try:
        return Profile.model_validate(document.value)
    except ValidationError as error:
        raise UserError(describe_errors(error, root=Profile, locate=locate)) from None


def _find(path_or_name: str) -> Path:
    path = Path(path_or_name)
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        if path.is_file():
            return path
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; a profile is a YAML file")
    known = sorted(file.stem for file in PROFILES_DIR.glob("*.yaml"))
    if path_or_name in known:
        return PROFILES_DIR / f"{path_or_name}.yaml"
    nearest = difflib.get_close_matches(path_or_name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
    raise UserError(f"--profile {path_or_name!r} is neither a .yaml file nor a profile of cluster/profiles/; {hint}")


def _with_tuples(values: object) -> object:
    if isinstance(values, list):
        return tuple(_with_tuples(value) for value in values)
    if isinstance(values, dict):
        return {key: _with_tuples(value) for key, value in values.items()}
    return values
