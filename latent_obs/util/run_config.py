"""Settings of a run: saved as JSON beside its results, and checked when the run is resumed."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from latent_obs.util.errors import InputError, check_types, parse_json

#: As the default of a removed field: any value is accepted and ignored.
ANY = object()


@dataclass(frozen=True)
class RunConfig:
    """Base of the frozen dataclasses that hold a run's settings; each has a field `out`, the run folder.

    Attributes:
        CHANGEABLE_ON_RESUME: Fields that a resumed run may change.
        KIND: What the run folder holds, for error messages.
        WHERE_FROM: The command that makes it, for error messages.
        RENAMED: Fields of earlier versions and their present names.
        REMOVED: Fields of earlier versions: their default (or `ANY`), and what to do if a run has another value.
    """

    CHANGEABLE_ON_RESUME: ClassVar[tuple[str, ...]] = ("out",)
    KIND: ClassVar[str] = "run"
    WHERE_FROM: ClassVar[str] = "another command"
    RENAMED: ClassVar[dict[str, str]] = {}
    REMOVED: ClassVar[dict[str, tuple[Any, str]]] = {}

    def __post_init__(self) -> None:
        check_types(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read the settings that `to_json` gave; an `InputError` if one is unknown, invalid, or was removed."""
        for name, (default, advice) in cls.REMOVED.items():
            if default is not ANY and values.get(name, default) != default:
                raise InputError(f"{name} is {values[name]!r}, and this version has no such setting; {advice}")
        values = {cls.RENAMED.get(name, name): value for name, value in values.items() if name not in cls.REMOVED}
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown or "out" not in values:  # every version writes it
            raise InputError(f"expected settings of {cls.WHERE_FROM}, found {sorted(values)}; unknown: {unknown}")
        return cls(**values)

    @classmethod
    def load(cls, run: Path) -> Self:
        """Read the settings of a run folder; `out` is its present place. An `InputError` if it holds no such run."""
        file = run / "config.json"
        if not file.exists():
            raise InputError(f"{run} holds no {cls.KIND} (no config.json); {cls.WHERE_FROM} makes one")
        values = parse_json(file.read_bytes(), dict[str, Any], file)
        try:
            return replace(cls.from_json(values), out=run)  # pyright: ignore[reportCallIssue]
        except InputError as error:
            raise InputError(f"{file} cannot be read as the settings of {cls.WHERE_FROM}: {error}") from None

    def resumed_from(self, saved: Self) -> Self:
        """The saved settings, with the fields of `CHANGEABLE_ON_RESUME` that were given anew.

        A field at its default counts as not given. One that was given, differs and cannot change is an `InputError`.
        """
        default, changes = type(self)(), {}
        for field in fields(self):
            given, before = getattr(self, field.name), getattr(saved, field.name)
            if given in (getattr(default, field.name), before):
                continue
            if field.name not in self.CHANGEABLE_ON_RESUME:
                raise InputError(
                    f"{field.name} is {before!r} in the run to resume, and cannot become {given!r} half-way. Leave it "
                    "out, or start another run with another --out"
                )
            changes[field.name] = given
        return replace(saved, **changes)
